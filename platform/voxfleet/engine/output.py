"""Who an output folder belongs to: the job, the configuration and the inputs that began it."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from voxfleet import __version__, storage
from voxfleet.engine.console import say
from voxfleet.errors import UserError
from voxfleet.tracking.base import flatten
from voxfleet.tracking.outbox import Record
from voxfleet.tracking.record import send_unsent

_HIDDEN = ".voxfleet"  # BIDS validators pass over it
JOB_FILE = f"{_HIDDEN}/job.json"
LEDGER = f"{_HIDDEN}/ledger"
UNSENT, LOCK = f"{_HIDDEN}/unsent.json", f"{_HIDDEN}/lock"
# what a folder is made with, but does not depend on; a campaign may grow
_NOT_CONTENT = (
    *(
        "resources",
        "output",
        "batch_size",
        "decode_batch_size",
        "campaign.samples",
        "campaign.mixture",
        "max_skipped",
        "page",
        "commands",
    ),
    *("gradient_checkpointing", "loading.mode", "samples", "audit", "search.trials", "search.max_concurrent"),
    *("pools", "save.shard_size", "gate.attempts", "verify", "dry_run"),
    *(f"trainer.{key}" for key in ("keep_newest", "keep_best", "max_failures")),
)


def as_document(config: Any) -> dict[str, Any]:
    """A configuration as JSON holds it, without ``tracking``, whose address may hold a password."""
    document = dataclasses.asdict(config)
    document.pop("tracking", None)
    return json.loads(json.dumps(document))


def digest(document: Any) -> str:
    """A short sha256 of a JSON document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Output:
    """The folder of a job, its configuration, and digests of what it reads, by the key that names it.

    ``run`` is the folder of the run whose record tells of this output, where that is another; ``parent`` is the output
    of the job whose record this one's is a part of.
    """

    job: str
    folder: str
    config: Any
    inputs: Mapping[str, str] = field(default_factory=dict)
    run: str | None = None
    parent: "Output | None" = None

    def check(self) -> None:
        """Make sure that the job may write here: the folder is new or empty, or the same job began it.

        Raises:
            UserError: if the folder holds something else; the message names what differs.
        """
        record = self._begun()
        if record is None:
            if other := self._names():
                raise UserError(
                    f"output {self.folder} holds something else ({other[0]}); name an empty or new folder, or remove it"
                )
            return
        if record["job"] != self.job:
            raise UserError(
                f"output {self.folder} was made by job {record['job']}, not {self.job}; name another folder"
            )
        if changed := self._changes(record):
            key, (before, now) = next(iter(changed.items()))
            raise UserError(
                f"output {self.folder} was begun with {key} = {before}, now it is {now}; name another folder, or "
                "remove this one"
            )

    def _begun(self) -> dict[str, Any] | None:
        """The description of the run that began the folder; none if that was another one and it left nothing else.

        A bucket has no locks: there another run may be at work that has not left anything yet.
        """
        uri = storage.join(self.folder, JOB_FILE)
        if not storage.exists(uri):
            return None
        record = storage.read_json(uri)
        if not storage.is_local(self.folder) or (record["job"] == self.job and not self._changes(record)):
            return record
        left = self._names() + storage.names(storage.join(self.folder, LEDGER))
        return record if left or storage.exists(storage.join(self.folder, UNSENT)) else None

    def _names(self) -> list[str]:
        """The names of what is in the folder, without the hidden one."""
        return [name for name in storage.names(self.folder) if name != _HIDDEN]

    def _changes(self, record: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The keys that decide what the job makes and differ from those of ``record``: value then, value now."""
        before = _content(record["config"]) | _named(record["inputs"])
        now = _content(as_document(self.config)) | _named(self.inputs)
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return {key: (before.get(key), now.get(key)) for key in keys}

    def claim(self) -> None:
        """Mark the folder as begun by this job (see ``check``)."""
        self.check()
        if self._begun() is None:
            uri = storage.join(self.folder, JOB_FILE)
            record = {"job": self.job, "voxfleet": __version__, "record": self.key, "inputs": dict(self.inputs)}
            storage.write_json(uri, {**record, "config": as_document(self.config)})

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the only run that works in the folder, as far as its storage can tell.

        Raises:
            UserError: if another one does.
        """
        try:
            with storage.locked(storage.join(self.folder, LOCK)):
                yield
        except BlockingIOError:
            raise UserError(
                f"another run is working in {self.folder}; wait for it to end, or name another folder"
            ) from None

    def record(self, name: str) -> Record:
        """The job's record, which is found by a key in the folder: a folder that is removed begins a new one."""
        begun = self._begun() is not None
        unsent = storage.join(self.folder, UNSENT)
        parent = self.parent.key if self.parent else None
        return Record(name=name, key=self.key, unsent=unsent, begun=begun, parent=parent)

    @functools.cached_property
    def key(self) -> str:
        """What finds the record again."""
        record = self._begun() or {}
        return record.get("record") or uuid.uuid4().hex

    def send_unsent(self) -> bool:
        """Send what the run that finished the folder could not record; whether nothing is left."""
        return send_unsent(self.config.tracking, storage.join(self.run or self.folder, UNSENT), say)

    def is_done(self, marker: str) -> bool:
        """Whether an earlier run finished the folder, which its last file, ``marker``, shows; says so.

        What that run could not record is sent then.

        Raises:
            UserError: as ``check``.
        """
        self.check()
        done = storage.exists(storage.join(self.folder, marker))
        if done:
            say(f"{self.job}: {self.folder} is complete, nothing to do")
            self.send_unsent()
        return done


def _content(document: dict[str, Any]) -> dict[str, Any]:
    """The keys, dotted, that decide what a job makes."""
    keys = flatten(document)
    return {key: value for key, value in keys.items() if not any(f"{key}.".startswith(f"{n}.") for n in _NOT_CONTENT)}


def _named(inputs: Mapping[str, str]) -> dict[str, str]:
    return {f"the content of {key}": value for key, value in inputs.items()}
