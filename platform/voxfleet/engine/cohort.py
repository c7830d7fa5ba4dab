"""The cohort job: a simulated BIDS dataset, one Ray task a subject."""

import functools
from typing import Any

import ray

from voxfleet import storage
from voxfleet.config.jobs import CohortConfig
from voxfleet.data.cohort import Simulator, dataset_files, subject_files
from voxfleet.engine.console import Progress
from voxfleet.engine.job import job_session
from voxfleet.engine.output import LEDGER, Output
from voxfleet.engine.units import Ledger, Rows, run_units

_MARKER = "dataset_description.json"


def run(config: CohortConfig) -> None:
    """Simulate the cohort."""
    output = Output("cohort", config.output, config)
    if output.is_done(_MARKER):
        return
    folder = storage.absolute(config.output)
    with job_session(output) as tracker:
        progress = Progress("cohort", config.subjects, "subjects")
        units = {f"{index:06d}": index for index in range(config.subjects)}
        # once, and shared by the tasks of a node: the template takes seconds to load
        work = functools.partial(_simulate, ray.put(Simulator(config.simulation)), folder)
        rows = run_units(units, work, Ledger(storage.join(folder, LEDGER)), progress)
        participants = [row for unit in rows.values() for row in unit]
        files = dataset_files(config.simulation, participants)
        for path in sorted(files, key=lambda path: path == _MARKER):  # the marker last
            storage.write_bytes(storage.join(folder, path), files[path])
        groups = [row["group"] for row in participants]
        tracker.log_metrics([{f"subjects_{group}": groups.count(group) for group in sorted(set(groups))}])
        counts = ", ".join(f"{groups.count(group)} {group}" for group in sorted(set(groups)))
        progress.finish(f"{len(groups)} simulated subjects ({counts}) in {config.output}")


def _simulate(simulator: ray.ObjectRef, folder: str, unit: str, index: int) -> Rows:
    subject = _fetch(simulator).simulate(index)
    for path, data in subject_files(subject).items():
        storage.write_bytes(storage.join(folder, path), data)
    return [dict[str, Any](subject.participant)]


@functools.lru_cache(maxsize=1)
def _fetch(simulator: ray.ObjectRef) -> Simulator:
    """The simulator, copied out of the object store once a process."""
    return ray.get(simulator)
