"""A queue between a job and its tracking store: calls return at once, and what cannot be sent is kept and sent later.

What is to be recorded becomes operations, JSON objects with a ``kind``, which one thread sends in order. Sending one
twice must be as sending it once: that is the store's duty, for an operation is sent again where the answer was lost.
"""

import contextlib
import itertools
import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

from voxfleet import storage
from voxfleet.tracking.base import flatten

Operation = dict[str, Any]
Say = Callable[[str], None]

_FILES = ("artifact", "text", "package")  # kinds that go to the files of the store, which may fail alone
_TOGETHER = 1000  # operations with points that are sent at once
_LONGEST_PAUSE_S, _LAST_PAUSE_S = 60.0, 1.0


class RefusedError(Exception):
    """The store will never take an operation."""


class Store(Protocol):
    """Where operations go."""

    address: str

    def send(self, operations: list[Operation]) -> None:
        """Record one operation, or several of kind "metrics".

        Raises:
            RefusedError: if they can never be recorded.
            Exception: any other: they are sent again later.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a job: its ``name``, the ``key`` that finds it again, and the file that keeps what is not sent.

    ``begun`` says whether an earlier run began it, ``parent`` is the key of the record that it is a part of.
    """

    name: str
    key: str
    unsent: str
    begun: bool
    parent: str | None = None

    @classmethod
    def read(cls, unsent: str) -> "tuple[Record, list[Operation]]":
        """The record whose file is ``unsent``, and the operations in it."""
        document = storage.read_json(unsent)
        facts = {name: document.get(name) for name in ("name", "key", "parent")}
        return cls(**facts, unsent=unsent, begun=True), document["operations"]

    def keep(self, operations: list[Operation]) -> None:
        """Write the file, or remove it where nothing is left."""
        if operations:
            facts = {"name": self.name, "key": self.key, "parent": self.parent}
            storage.write_json(self.unsent, {**facts, "operations": operations})
        elif storage.exists(self.unsent):
            storage.remove(self.unsent)


def growing_pause(failures: int) -> float:
    """Seconds before the next try: 1, 2, 4 ... 60."""
    return min(2.0 ** min(failures - 1, 10), _LONGEST_PAUSE_S)


@dataclass
class _Lane:
    """Operations that are sent in their order."""

    what: str
    waiting: deque[Operation] = field(default_factory=deque)
    failures: int = 0
    failing_since: float = 0.0
    due: float = 0.0  # when to try next
    singly: int = 0  # how many of the first operations to send one by one

    def head(self) -> list[Operation]:
        """What to send next."""
        if self.singly or self.waiting[0]["kind"] != "metrics":
            return [self.waiting[0]]
        points = itertools.takewhile(lambda operation: operation["kind"] == "metrics", self.waiting)
        return list(itertools.islice(points, _TOGETHER))

    def drop(self, number: int) -> None:
        """Take the first ``number`` operations out."""
        for _ in range(number):
            self.waiting.popleft()
        self.singly = max(0, self.singly - number)


class Outbox:
    """Sends operations to ``store`` from a thread of its own, beginning with those that an earlier run kept."""

    def __init__(
        self,
        store: Store,
        record: Record,
        say: Say,
        *,
        flush_s: float,
        operations: list[Operation],
        pause: Callable[[int], float] = growing_pause,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._record, self._say, self._flush_s = store, record, say, flush_s
        self._pause, self._clock = pause, clock
        self._facts, self._files = _Lane("the record"), _Lane("files of the record")
        self._lanes = (self._facts, self._files)
        self._changed = threading.Condition()
        self._closing = False
        self._kept = bool(operations)  # whether there is a file
        self._said: set[str] = set()
        for operation in operations:
            self._lane(operation).waiting.append(operation)
        self._thread = threading.Thread(target=self._run, daemon=True, name="voxfleet-tracking")
        self._thread.start()

    def put(self, kind: str, **content: Any) -> None:
        """Send an operation when its turn comes."""
        operation = {"kind": kind, **content}
        with self._changed:
            self._lane(operation).waiting.append(operation)
            self._changed.notify_all()

    def close(self) -> int:
        """Send what is left, keep in a file what cannot be sent, and return how much that is.

        Gives up when the store has failed for ``flush_s``.
        """
        with self._changed:
            self._closing = True
            for lane in self._lanes:
                lane.due = 0.0
            self._changed.notify_all()
        try:
            self._thread.join()
        finally:  # Ctrl-C ends the wait, not the care
            left = self._left()
            if left and self._keep(left):
                self._say(
                    f"tracking: {len(left)} entries of the record could not be sent to {self._store.address}; they are "
                    f"in {self._record.unsent}, and the next run of the same command sends them"
                )
        return len(left)

    # --- in the thread

    def _run(self) -> None:
        while work := self._next():
            lane, operations = work
            try:
                self._store.send(operations)
            except RefusedError as error:
                self._refused(lane, operations, error)
            except Exception as error:
                self._failed(lane, error)
            else:
                self._sent(lane, len(operations))

    def _next(self) -> tuple[_Lane, list[Operation]] | None:
        """What is due, or None at the end."""
        with self._changed:
            while True:
                now = self._clock()
                waiting = [lane for lane in self._lanes if lane.waiting and lane.due < math.inf]
                for lane in waiting:
                    if lane.due <= now:
                        return lane, lane.head()
                if self._closing and not waiting:
                    return None
                self._changed.wait(min(lane.due for lane in waiting) - now if waiting else None)

    def _sent(self, lane: _Lane, number: int) -> None:
        with self._changed:
            lane.drop(number)
            failures, lane.failures = lane.failures, 0
        if failures:
            self._say(f"tracking: {self._store.address} takes {lane.what} again")
        self._tidy()

    def _failed(self, lane: _Lane, error: Exception) -> None:
        now = self._clock()
        with self._changed:
            lane.failures += 1
            if lane.failures == 1:
                lane.failing_since = now
            pause = self._pause(lane.failures)
            if self._closing:
                pause = min(pause, _LAST_PAUSE_S) if now - lane.failing_since < self._flush_s else math.inf
            lane.due = now + pause
            if pause == math.inf and lane is self._facts:  # a store without runs has no files of them
                self._files.due = math.inf
        if lane.failures == 1:
            self._say(
                f"tracking: {self._store.address} does not take {lane.what} ({masked(str(error))}); the job goes on, "
                "and what is not sent is kept and sent later"
            )
        self._keep(self._left())  # the process may be killed

    def _refused(self, lane: _Lane, operations: list[Operation], error: RefusedError) -> None:
        if len(operations) > 1:  # find those that are at fault
            lane.singly = len(operations)
            return
        with self._changed:
            lane.drop(1)
        self._say_once(
            f"tracking: {self._store.address} refuses {operations[0]['kind']} ({masked(str(error))}); it is left out"
        )
        self._tidy()

    def _tidy(self) -> None:
        """Remove the file once nothing is left."""
        if self._kept and not self._left():
            self._keep([])

    def _keep(self, operations: list[Operation]) -> bool:
        try:
            self._record.keep(operations)
        except Exception as error:
            self._say_once(f"tracking: cannot keep what is not sent ({masked(str(error))})")
            return False
        self._kept = bool(operations)
        return True

    # --- in both

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _lane(self, operation: Operation) -> _Lane:
        return self._files if operation["kind"] in _FILES else self._facts

    def _left(self) -> list[Operation]:
        with self._changed:
            return [operation for lane in self._lanes for operation in lane.waiting]


class QueuedTracker:
    """A tracker (see ``Tracker``) whose calls become operations of an outbox."""

    def __init__(self, outbox: Outbox, model_name: str) -> None:
        self._put, self._model_name = outbox.put, model_name

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record nested parameters under dotted names."""
        self._put("params", params={name: str(value) for name, value in flatten(params).items()})

    def log_metrics(self, points: list[dict[str, float]]) -> None:
        """Record points; what is not a number is passed over."""
        metrics = [metric for point in points for metric in _metrics(point)]
        if metrics:
            self._put("metrics", metrics=metrics)

    def log_artifact(self, uri: str, folder: str = "") -> None:
        """Keep a copy of a file."""
        self._put("artifact", uri=storage.absolute(uri), folder=folder)

    def log_document(self, name: str, document: Any) -> None:
        """Keep a JSON document."""
        self._put("text", name=name, text=json.dumps(document, indent=2, default=str) + "\n")

    def log_reference(self, name: str, uri: str) -> None:
        """Record where something stands."""
        self.log_tags({name: storage.absolute(uri)})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record facts that may change."""
        if tags:
            self._put("tags", tags=dict(tags))

    def log_dataset(self, name: str, uri: str, digest: str, profile: Mapping[str, Any] | None = None) -> None:
        """Record what the job reads."""
        figures = json.dumps(dict(profile or {}), default=str)
        self._put("dataset", name=name, uri=storage.absolute(uri), digest=digest, profile=figures)

    def register_package(self, folder: str, fingerprint: str, alias: str) -> None:
        """Register a finished package."""
        where = storage.absolute(folder)
        self._put("package", folder=where, fingerprint=fingerprint, alias=alias, name=self._model_name)


def _metrics(point: Mapping[str, Any]) -> list[tuple[str, float, int, int | None]]:
    """(key, value, time in ms, step) of each metric of a point."""
    when = int(1000 * point.get("time", time.time()))
    step = int(point["step"]) if "step" in point else None
    values = {key: value for key, value in point.items() if key not in ("step", "time") and isinstance(value, Real)}
    return [(key, float(value), when, step) for key, value in values.items()]


@contextlib.contextmanager
def recording(outbox: Outbox, tracker: QueuedTracker) -> Iterator[QueuedTracker]:
    """The tracker; at the end how the job ended is recorded, and the outbox emptied."""
    outbox.put("status", status="RUNNING", time=None)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        outbox.put("status", status=status, time=int(1000 * time.time()))
        outbox.close()


def masked(text: str) -> str:
    """``text`` in one line, without the user and password of the addresses in it."""
    return re.sub(r"(\w://)[^/\s]+@", r"\1***@", " ".join(text.split()))
