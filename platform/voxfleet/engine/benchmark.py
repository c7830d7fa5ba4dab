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
from voxfleet.models.execution import resolve_precision
from voxfleet.report.benchmark import figure, table
from voxfleet.train.speed import BenchmarkCase, measure

FIGURES, PLOT = "benchmark.json", "benchmark.png"


def run(config: BenchmarkConfig) -> None:
    """Measure every case, and write a table, JSON and a plot."""
    output = Output("benchmark", config.output, config)
    if output.is_done(FIGURES):
        return
    there = absolute_paths(config, "output")
    with job_session(output, workers=True) as tracker:
        gpus = gpus_per_worker(config.resources)
        units = {f"{number:03d}-{work}": (case, work) for number, case in enumerate(config.cases) for work in case.work}
        progress = Progress("benchmark", len(units), "cases")
        made = run_units(
            units,
            Bench,
            Ledger(storage.join(there.output, LEDGER)),
            progress,
            pool=Pool(workers=config.resources.workers, cpus=config.resources.cpus_per_worker, gpus=gpus),
            arguments=(there, gpus > 0),
        )
        rows = [row for unit in made.values() for row in unit]
        storage.write_bytes(storage.join(there.output, PLOT), figure(rows))
        storage.write_json(storage.join(there.output, FIGURES), {"voxfleet": __version__, "rows": rows})
        tracker.log_metrics([{_metric(row): row["samples_per_s"] for row in rows}])
        show(table(rows))
        progress.finish(f"{len(rows)} rows on {rows[0]['device']} in {config.output}")


def _metric(row: dict[str, Any]) -> str:
    size = "x".join(map(str, row["input_size"]))
    return f"{row['work']}/{row['network']}/{row['mode']}/{size}/batch{row['batch_size']}/samples_per_s"


class Bench:
    """An actor that measures one case at a time."""

    def __init__(self, config: BenchmarkConfig, gpu: bool) -> None:
        torch.set_num_threads(config.resources.cpus_per_worker)
        self.config = config
        self.device = torch.device("cuda" if gpu else "cpu")

    def __call__(self, _: str, unit: tuple[BenchmarkCase, str]) -> Rows:
        """Measure all networks and modes at one case."""
        config = self.config
        return measure(
            *unit,
            config.model,
            networks=config.networks,
            modes=config.modes,
            sampler=config.sampler,
            precision=resolve_precision(config.precision, self.device),
            repeats=config.repeats,
            device=self.device,
        )
