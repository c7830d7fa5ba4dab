"""What every job does around its work: join Ray, open the record, claim the output."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TypeVar

from voxfleet import storage
from voxfleet.engine.cluster import check_fits, session
from voxfleet.engine.console import say
from voxfleet.engine.output import Output, as_document
from voxfleet.tracking.base import Tracker
from voxfleet.tracking.record import open_tracker

ConfigT = TypeVar("ConfigT")


def absolute_paths(config: ConfigT, *names: str) -> ConfigT:
    """``config`` with these local paths made absolute: workers run in folders of their own."""
    paths = {name: storage.absolute(getattr(config, name)) for name in names}
    return dataclasses.replace(config, **paths)  # type: ignore[type-var]


@contextlib.contextmanager
def job_session(
    output: Output, *, workers: bool = False, more_workers: int = 0, name: str | None = None
) -> Iterator[Tracker]:
    """Be connected to Ray (with room for the configured ``workers`` and more), claim the output, yield the tracker.

    The output is claimed when everything else is in place: a request that cannot run leaves no folder behind.
    """
    output.check()
    storage.check_writable(output.folder)
    with session(output.config.resources):
        if workers:
            check_fits(output.config.resources, more_workers)
        with recorded(output, name) as tracker:
            yield tracker


@contextlib.contextmanager
def recorded(output: Output, name: str | None = None) -> Iterator[Tracker]:
    """``job_session`` of a job that needs no Ray."""
    with output.held(), open_tracker(output.config.tracking, output.record(name or output.job), say) as tracker:
        output.claim()
        document = as_document(output.config)
        tracker.log_params({"job": output.job, "inputs": dict(output.inputs), **document})
        tracker.log_document("config.json", document)
        yield tracker
