"""What every job does around its work: claim the output, join Ray, open the record."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from voxfleet import storage
from voxfleet.engine.cluster import session
from voxfleet.engine.console import say
from voxfleet.engine.output import check_output, claim_output, content
from voxfleet.tracking.base import Tracker, open_tracker

ConfigT = TypeVar("ConfigT")


def absolute_paths(config: ConfigT, *names: str) -> ConfigT:
    """``config`` with these local paths made absolute: workers run in folders of their own."""
    paths = {name: storage.absolute(getattr(config, name)) for name in names}
    return dataclasses.replace(config, **paths)  # type: ignore[type-var]


def is_done(job: str, folder: str, marker: str, config: Any) -> bool:
    """Whether an earlier run finished ``folder``, which its last file, ``marker``, shows; says so.

    Raises:
        UserError: if the folder holds something else than ``job`` makes with ``config``.
    """
    check_output(folder, job, config)
    done = storage.exists(storage.join(folder, marker))
    if done:
        say(f"{job}: {folder} is complete, nothing to do")
    return done


@contextlib.contextmanager
def job_session(job: str, folder: str, config: Any, name: str | None = None) -> Iterator[Tracker]:
    """Claim ``folder``, be connected to Ray, and yield the tracker, which knows the configuration."""
    claim_output(folder, job, config)
    with (
        session(config.resources),
        open_tracker(config.tracking, name or job, f"{job}:{storage.absolute(folder)}") as tracker,
    ):
        tracker.log_params({"job": job, "output": folder, **content(config)})
        yield tracker
