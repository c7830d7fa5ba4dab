"""Who an output folder belongs to: the job and the configuration that began it."""

import dataclasses
import json
from typing import Any

from voxfleet import __version__, storage
from voxfleet.errors import UserError
from voxfleet.tracking.base import flatten

JOB_FILE = ".voxfleet/job.json"  # hidden: BIDS validators pass over it
LEDGER = ".voxfleet/ledger"
# what a folder is made with, but does not depend on; a campaign may grow
_NOT_CONTENT = ("resources", "tracking", "output", "batch_size", "campaign.samples", "page", "commands")


def as_document(config: Any) -> dict[str, Any]:
    """A job's configuration as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def check_output(folder: str, job: str, config: Any) -> None:
    """Make sure that ``job`` may write to ``folder``: it is new or empty, or the same configuration began it.

    Raises:
        UserError: if the folder holds something else; the message names what differs.
    """
    uri = storage.join(folder, JOB_FILE)
    if not storage.exists(uri):
        found = storage.names(folder) if storage.exists(folder) else []
        if found:
            raise UserError(
                f"output {folder} holds something else ({found[0]}); name an empty or new folder, or remove it"
            )
        return
    record = storage.read_json(uri)
    if record.get("job") != job:
        raise UserError(f"output {folder} was made by job {record.get('job')}, not {job}; name another folder")
    before, now = record["config"], content(config)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"output {folder} was begun with {key} = {before.get(key)}, now it is {now.get(key)}; "
            "name another folder, or remove this one"
        )


def claim_output(folder: str, job: str, config: Any) -> None:
    """Mark ``folder`` as begun by ``job`` with ``config`` (see ``check_output``)."""
    check_output(folder, job, config)
    uri = storage.join(folder, JOB_FILE)
    if not storage.exists(uri):
        storage.write_json(uri, {"job": job, "voxfleet": __version__, "config": content(config)})


def content(config: Any) -> dict[str, Any]:
    """The keys, dotted, that decide what a job makes."""
    keys = flatten(as_document(config))
    return {key: value for key, value in keys.items() if not any(f"{key}.".startswith(f"{n}.") for n in _NOT_CONTENT)}
