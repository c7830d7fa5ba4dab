"""The scale job: what the machinery costs here, and how far campaigns and trainings grow with that."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray

from voxfleet import __version__, storage
from voxfleet.config.scaling import ScaleConfig
from voxfleet.data.campaign import SCHEMA
from voxfleet.engine.console import Progress, duration, show
from voxfleet.engine.job import job_session
from voxfleet.engine.mailbox import Mailbox
from voxfleet.engine.output import Output
from voxfleet.engine.pipeline import Pipeline, Stage
from voxfleet.engine.units import Ledger
from voxfleet.growth import campaign, training
from voxfleet.growth.overheads import Overheads
from voxfleet.train.checkpoint import CheckpointStore

FIGURES, TABLE = "scale.json", "scale.txt"
_CHECKPOINT = 64_000_000  # bytes
_TRIES = 5
_STEPS = ("overheads", "campaign", "training")


def run(config: ScaleConfig) -> None:
    """Measure, simulate, and write a table and figures."""
    output = Output("scale", config.output, config, {})
    if output.is_done(FIGURES):
        show(_table(storage.read_json(storage.join(config.output, FIGURES))))
        return
    with job_session(output) as tracker:
        progress = Progress("scale", len(_STEPS), "parts")
        costs = measure(config)
        progress.advance(1, "measured")
        generated = {gpus: campaign.simulate(config.campaign, costs, gpus) for gpus in config.gpus}
        progress.advance(1)
        trained = {gpus: training.simulate(config.training, costs, gpus) for gpus in config.gpus}
        progress.advance(1)
        figures = {
            "voxfleet": __version__,
            "overheads": dataclasses.asdict(costs),
            "campaign": [_row(gpus, outcome) for gpus, outcome in generated.items()],
            "training": [_row(gpus, outcome) for gpus, outcome in trained.items()],
        }
        lines = _table(figures)
        show(lines)
        storage.write_bytes(storage.join(config.output, TABLE), "\n".join([*lines, ""]).encode())
        storage.write_json(storage.join(config.output, FIGURES), figures)
        tracker.log_metrics([dataclasses.asdict(costs)])
        progress.finish(f"overheads and {len(config.gpus)} sizes in {config.output}")


def measure(config: ScaleConfig) -> Overheads:
    """What the machinery costs on this cluster, and in the storage of the output."""
    scratch = storage.join(storage.absolute(config.output), "measured")
    rows = [_sample(number) for number in range(config.campaign.shard)]
    ledger = Ledger(scratch)
    commits = [_timed(lambda name=name: ledger.commit(name, rows, SCHEMA)) for name in _names(config.commits)]  # type: ignore[misc]
    read_s = _timed(lambda: ledger.table(SCHEMA).to_pylist())
    for name in _names(config.commits):
        storage.remove(storage.join(scratch, f"{name}.parquet"))
    return Overheads(
        call_s=_call_s(config.calls),
        task_s=_task_s(config.calls),
        message_s=_message_s(config.calls),
        commit_s=float(np.median(commits)),
        row_s=read_s / len(rows) / config.commits,
        bytes_per_s=_checkpoint_rate(scratch),
    )


def _names(number: int) -> list[str]:
    return [f"unit-{index:05d}" for index in range(number)]


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _sample(number: int) -> dict[str, Any]:
    """A row as ``generate`` commits it."""
    digest = f"{number:064x}"
    name = f"syn-TLE-{number:07d}"
    row = {column: 0 if str(kind) == "int64" else "" for column, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)}
    checks = dict.fromkeys((part.name for part in SCHEMA.field("checks").type), 0.5)
    return {**row, "sample_id": name, "sha256": digest, "sidecar_sha256": digest, "index": number, "checks": checks}


class _Nothing:
    """A stage that does nothing."""

    def __call__(self, batch: int, *_: object) -> dict[str, int]:
        return {"made": batch}


class _Last(_Nothing):
    """A last stage that does nothing."""

    def __call__(self, batch: int, *_: object) -> int:  # type: ignore[override]
        return batch


def _call_s(calls: int) -> float:
    """Processor time of the driver for a call, in a pipeline of two stages as that of ``generate``."""
    batches = iter(range(calls // 2 + 1))
    stages = [
        Stage(name="draw", kind=_Nothing, arguments=(), gives=("made",), cpus=0),
        Stage(name="write", kind=_Last, arguments=(), takes=("made",), cpus=0),
    ]
    with Pipeline(stages) as pipeline:
        parcels = pipeline.run(lambda: next(batches, None))
        next(parcels)  # the workers are up
        began = time.process_time()
        made = sum(1 for _ in parcels)
        return (time.process_time() - began) / (2 * max(made, 1))


@ray.remote(num_cpus=0)
def _task() -> None: ...


def _task_s(tasks: int) -> float:
    """Processor time of the driver for a task."""
    ray.get(_task.remote())
    began = time.process_time()
    for some in _parts(tasks):
        ray.get([_task.remote() for _ in range(some)])
    return (time.process_time() - began) / tasks


def _parts(total: int, size: int = 100) -> Iterator[int]:
    """``total`` in parts of ``size``."""
    yield from itertools.repeat(size, total // size)
    if total % size:
        yield total % size


def _message_s(messages: int) -> float:
    """Time of the driver to take a message of a training out of its mailbox, one at a time, as it does."""
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]
    taken = min(messages, 200)
    seconds = 0.0
    for step in range(taken):
        ray.get(mailbox.put.remote({"step": step, "loss": 0.5}))
        seconds += _timed(lambda: ray.get(mailbox.drain.remote()))
    ray.kill(mailbox)
    return seconds / taken


def _checkpoint_rate(folder: str) -> float:
    """Bytes a second at which a checkpoint is written."""
    store, data = CheckpointStore(folder), np.random.default_rng(0).bytes(_CHECKPOINT)
    seconds = [_timed(lambda: store.write(0, data)) for _ in range(_TRIES)]
    storage.remove(store.uri(0))
    return _CHECKPOINT / float(np.median(seconds))


def _row(gpus: int, outcome: Any) -> dict[str, Any]:
    return {"gpus": gpus, **dataclasses.asdict(outcome), "bottleneck": outcome.bottleneck}


def _table(figures: dict[str, Any]) -> list[str]:
    """The figures in words."""
    costs = figures["overheads"]
    lines = ["measured here"]
    for name, what in (
        ("call_s", "driver, a call of a worker"),
        ("task_s", "driver, a task"),
        ("message_s", "driver, a message of a training"),
        ("commit_s", "a commit of a shard of samples"),
        ("row_s", "driver, a sample of the manifest"),
    ):
        lines.append(f"  {what:<34} {1e3 * costs[name]:.3g} ms")
    lines.append(f"  {'a checkpoint is written with':<34} {costs['bytes_per_s'] / 1e6:.3g} MB/s")
    for what in ("campaign", "training"):
        lines += ["", f"{what}, simulated", f"  {'GPUs':>6}  {'time':>14}  efficiency  what holds it up"]
        for row in figures[what]:
            share = (row.get("busy") or row["shares"])[row["bottleneck"]]
            lines.append(
                f"  {row['gpus']:>6}  {duration(row['seconds']):>14}  {row['efficiency']:>10.1%}  "
                f"{row['bottleneck']} ({share:.0%})"
            )
    return lines
