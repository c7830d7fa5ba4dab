"""The benchmark job: how fast networks run here, as shares of the device's own measured matrix rate."""

from typing import Any

import torch

from voxfleet import __version__, storage
from voxfleet.config.jobs import BenchmarkConfig
from voxfleet.engine.cluster import gpus_per_worker
from voxfleet.engine.console import Progress, show
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import LEDGER, Output
from voxfleet.engine.units import Ledger, Pool, Rows, run_units
from voxfleet.errors import UserError
from voxfleet.report.benchmark import figure, table
from voxfleet.train.speed import BenchmarkCase, measure

FIGURES, PLOT, TABLE = "benchmark.json", "benchmark.png", "benchmark.txt"


def run(config: BenchmarkConfig) -> None:
    """Measure every case, and write a table, figures and a plot."""
    asked = config.resources
    # what is measured depends on these alone of all resources: a run that continues must not mix them
    inputs = {"resources": f"{asked.cpus_per_worker} CPUs and {asked.gpus_per_worker} GPUs a worker"}
    output = Output("benchmark", config.output, config, inputs)
    if output.is_done(FIGURES):
        show(table(storage.read_json(storage.join(config.output, FIGURES))["rows"]))
        return
    there = absolute_paths(config, "output")
    with job_session(output, workers=True) as tracker:
        gpus = gpus_per_worker(asked)
        units = {f"{number:03d}-{work}": (case, work) for number, case in enumerate(config.cases) for work in case.work}
        progress = Progress("benchmark", len(units), "cases")
        made = run_units(
            units,
            Bench,
            Ledger(storage.join(there.output, LEDGER)),
            progress,
            pool=Pool(workers=asked.workers, cpus=asked.cpus_per_worker, gpus=gpus),
            arguments=(there, gpus > 0),
        )
        rows = [row for unit in made.values() for row in unit]
        lines = table(rows)
        show(lines)
        storage.write_bytes(storage.join(there.output, TABLE), "\n".join([*lines, ""]).encode())
        storage.write_bytes(storage.join(there.output, PLOT), figure(rows))
        storage.write_json(storage.join(there.output, FIGURES), {"voxfleet": __version__, "rows": rows})
        tracker.log_metrics([{_metric(row): row["samples_per_s"] for row in rows if row["seconds"] is not None}])
        progress.finish(f"{len(rows)} rows on {rows[0]['device']} in {config.output}")


def _metric(row: dict[str, Any]) -> str:
    size, patch = ("x".join(map(str, edges or ["none"])) for edges in (row["input_size"], row["patch_size"]))
    return f"{row['work']}/{row['network']}/{row['mode']}/{size}/patch{patch}/batch{row['batch_size']}/samples_per_s"


class Bench:
    """An actor that measures one case at a time."""

    def __init__(self, config: BenchmarkConfig, gpu: bool) -> None:
        torch.set_num_threads(config.resources.cpus_per_worker)
        self.config = config
        self.device = torch.device("cuda" if gpu else "cpu")
        if not gpu and set(config.modes) == {"graphs"}:
            raise UserError("modes is ['graphs'], which needs a GPU, and this cluster has none; use eager or compiled")

    def __call__(self, _: str, unit: tuple[BenchmarkCase, str]) -> Rows:
        """Measure all networks and modes at one case."""
        return measure(*unit, self.config, self.device)
