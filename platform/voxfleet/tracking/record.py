"""Opening the record of a job. MLflow is imported where a record is kept: that takes seconds."""

import contextlib
from collections.abc import Iterator

from voxfleet import storage
from voxfleet.errors import UserError
from voxfleet.tracking.base import NullTracker, Tracker, TrackingConfig
from voxfleet.tracking.outbox import Outbox, QueuedTracker, Record, Say, masked, recording

_REGISTERED = "models:/"


@contextlib.contextmanager
def open_tracker(config: TrackingConfig, record: Record, say: Say) -> Iterator[Tracker]:
    """The tracker that ``config`` asks for; ``say`` takes the lines that the user should see.

    A store that cannot be reached delays the record of a job that an earlier run began, and stops a new one.

    Raises:
        UserError: if the record is new and its store cannot be opened.
    """
    if config.resolved_uri is None:
        yield NullTracker()
        return
    from voxfleet.tracking.mlflow import MlflowStore, source_tags

    store = MlflowStore(config, record)
    if not record.begun:
        store.open()
    operations = Record.read(record.unsent)[1] if storage.exists(record.unsent) else []
    outbox = Outbox(store, record, say, flush_s=config.flush_s, operations=operations)
    with recording(outbox, QueuedTracker(outbox, config.model_name or record.name)) as tracker:
        tracker.log_tags(source_tags())
        yield tracker


def send_unsent(config: TrackingConfig, unsent: str, say: Say) -> bool:
    """Send what the last run of a finished job kept in the file ``unsent``; whether nothing is left there."""
    if config.resolved_uri is None or not storage.exists(unsent):
        return True
    from voxfleet.tracking.mlflow import MlflowStore

    record, operations = Record.read(unsent)
    outbox = Outbox(MlflowStore(config, record), record, say, flush_s=0, operations=operations)
    if outbox.close():
        return False
    say(f"tracking: sent what the last run had kept to {masked(config.resolved_uri)}")
    return True


def resolve_model(uri: str, config: TrackingConfig, folder: str) -> str:
    """The folder of the package that ``uri`` means: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or itself.

    Packages that only the store can read are copied into the local ``folder``.

    Raises:
        UserError: if there is no store, or no such model in it.
    """
    if not uri.startswith(_REGISTERED):
        return uri
    if config.resolved_uri is None:
        raise UserError(f"{uri} is a registered model, but there is no MLflow store; set tracking.uri")
    from voxfleet.tracking.mlflow import package_folder

    return package_folder(uri, config.resolved_uri, folder)


def check_store(config: TrackingConfig) -> str | None:
    """The address of the store that ``config`` means, after it was asked for something; None where there is none.

    Raises:
        UserError: if it does not answer.
    """
    if config.resolved_uri is None:
        return None
    from voxfleet.tracking.mlflow import ask

    ask(config.resolved_uri)
    return masked(config.resolved_uri)
