"""Carrying out a campaign: the pipeline of its workers, and the commits of what they made."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from voxfleet import storage
from voxfleet.config.generation import GenerateConfig
from voxfleet.data.campaign import SCHEMA, Queue, Sample, Unit
from voxfleet.data.latents import write_latents
from voxfleet.data.synthetic import LATENTS, Writer
from voxfleet.engine.cluster import free_cpus, gpus_per_worker
from voxfleet.engine.console import Progress
from voxfleet.engine.makers import Decoder, Drawer, Maker, Making
from voxfleet.engine.output import digest
from voxfleet.engine.pipeline import Pipeline, Spent, Stage
from voxfleet.engine.units import Ledger, Rows
from voxfleet.models.vae import LOGVAR

WRITE = "write"
_COMMITS = 4  # at a time: on a remote file system each waits for the answer
_MEASURED = 3  # calls of each stage, their first ones not counted, after which the pool of writers is sized
_LEAST_WAIT_S = 120.0  # for a worker: its process may take that long on a busy machine
_SPARE = 1.25  # of the writers that the measured times call for


def making_of(config: GenerateConfig, gpu: bool) -> Making:
    """How ``config`` makes samples on its workers."""
    mode = ("compiled" if gpu else "eager") if config.mode == "auto" else config.mode
    return Making(
        model=config.model,
        autoencoder=config.autoencoder or "",
        sampler=config.sampler,
        precision=config.precision,
        mode=mode,
        decode_precision=config.decode_precision,
        batch_size=config.batch_size,
        decode_batch_size=min(config.decode_batch_size, config.batch_size),
        threads=config.resources.cpus_per_worker,
        device="cuda" if gpu else "cpu",
    )


@dataclass(frozen=True)
class Crew:
    """Who carries out a campaign.

    Attributes:
        config: of the campaign, its paths absolute.
        writer: what a writer does.
        known: the training latents, in the object store, or None.
        workers, decoders, writers: how many of each there are at first.
        most_writers: how many there may be.
    """

    config: GenerateConfig
    writer: Writer
    known: ray.ObjectRef | None
    workers: int
    decoders: int
    writers: int
    most_writers: int

    @classmethod
    def of(cls, config: GenerateConfig, writer: Writer, known: ray.ObjectRef | None, batches: int) -> "Crew":
        """As many as are configured, and of use for so many batches."""
        pools, resources = config.pools, config.resources
        workers = min(resources.workers, batches)
        decoders = min(pools.decoders, batches) if config.save.volumes else 0
        spare = int(free_cpus() - (workers + decoders) * resources.cpus_per_worker)
        most = pools.writers or max(1, spare)
        return cls(config, writer, known, workers, decoders, pools.writers or 1, most)

    def pipeline(self) -> Pipeline:
        """The stages."""
        config, keep = self.config, ("latents",) * self.config.save.latents
        gpus = gpus_per_worker(config.resources)
        making = making_of(config, gpus > 0)

        def stage(name: str, kind: type, workers: int, **more: Any) -> Stage:
            arguments = (making,) if kind is Decoder else (making, self.known)
            cpus = config.resources.cpus_per_worker
            return Stage(name=name, kind=kind, arguments=arguments, workers=workers, cpus=cpus, gpus=gpus, **more)

        if not config.save.volumes:
            makers = [stage("draw", Drawer, self.workers, gives=("made", *keep))]
        elif self.decoders:
            makers = [
                stage("draw", Drawer, self.workers, gives=("made", "latents")),
                stage("decode", Decoder, self.decoders, takes=("latents",), gives=("volumes",)),
            ]
        else:
            makers = [stage("draw and decode", Maker, self.workers, gives=("made", "volumes", *keep))]
        takes = ("made", "volumes") if config.save.volumes else ("made",)
        # without CPUs of their own, writers need not wait where workers hold all
        write = Stage(
            name=WRITE, kind=Writer, arguments=self.writer.arguments, takes=takes, workers=self.writers, cpus=0
        )
        return Pipeline([*makers, write], keep=keep, wait_s=max(config.resources.wait_s, _LEAST_WAIT_S))

    @property
    def sizes(self) -> dict[str, int]:
        """Workers of each stage but the writers'."""
        makers = {"draw": self.workers, "decode": self.decoders}
        return makers if self.decoders else {"draw and decode" if self.config.save.volumes else "draw": self.workers}

    def writers_for(self, spent: Mapping[str, Spent]) -> int:
        """How many writers keep up with the makers, by what both took; no more than there may be."""
        rate = min(workers / max(spent[name].each_s, 1e-9) for name, workers in self.sizes.items())
        return max(self.writers, min(self.most_writers, math.ceil(_SPARE * rate * spent[WRITE].each_s)))


@dataclass
class Tally:
    """What a run made, kept and rejected, and what it took.

    Attributes:
        kept: samples.
        rejected: attempts, by the check that they failed.
        size: bytes of the images, and of latents.
        spent: of each stage.
        writers: at the end.
        wall_s: seconds.
    """

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    size: int = 0
    spent: dict[str, Spent] = field(default_factory=dict)
    writers: int = 1
    wall_s: float = 0.0

    def add(self, rows: Rows, latents: np.ndarray | None) -> None:
        """Count the rows of a batch, and its latents, if they are written."""
        for row in rows:
            if row["reason"]:
                self.rejected[row["reason"].partition(" is ")[0]] += 1
            else:
                self.kept += 1
                self.size += (row.get("bytes") or 0) + (0 if latents is None else latents[0].nbytes)


def carry_out(
    crew: Crew, queue: Queue, commits: "Commits | None", progress: Progress, most_batches: int | None = None
) -> Tally:
    """Make what ``queue`` gives, and commit it; without ``commits`` nothing is kept, and there is an end.

    Raises:
        VoxfleetError: what a worker raised; what was committed stays.
    """
    tally, given, began = Tally(writers=crew.writers), itertools.count(), time.monotonic()

    def source() -> list[Sample] | None:
        return queue.next() if most_batches is None or next(given) < most_batches else None

    sized = False
    with crew.pipeline() as pipeline:
        tally.spent = pipeline.spent
        for parcel in pipeline.run(source):
            latents = parcel.data.get("latents")
            unit = queue.decided(parcel.batch, parcel.result, latents)
            tally.add(parcel.result, latents)
            if unit and commits:
                commits.begin(unit)
            if not sized and min(spent.steady for spent in pipeline.spent.values()) >= _MEASURED:
                sized, tally.writers = True, crew.writers_for(pipeline.spent)
                pipeline.grow(WRITE, tally.writers)
            rejected = sum(tally.rejected.values())
            progress.advance(
                sum(not row["reason"] for row in parcel.result), f"{rejected} rejected" if rejected else ""
            )
        if commits:
            commits.finish()
    tally.wall_s = time.monotonic() - began
    return tally


class Commits:
    """Commits units, several at a time: first their latent shard, if one is wanted, then their rows.

    The driver does it, so that nothing is committed by a worker that outlived a driver which was killed.
    """

    def __init__(self, folder: str, classes: Sequence[str], ledger: Ledger, latents: bool) -> None:
        self._folder, self._classes, self._ledger, self._latents = folder, classes, ledger, latents
        self._pool = ThreadPoolExecutor(_COMMITS)
        self._begun: set[Future[None]] = set()

    def __enter__(self) -> "Commits":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, unit: Unit) -> None:
        """Commit a unit as soon as there is a hand for it."""
        if len(self._begun) >= 2 * _COMMITS:
            self._wait(FIRST_COMPLETED)
        self._begun.add(self._pool.submit(self._commit, unit))

    def finish(self) -> None:
        """Wait for the commits that were begun."""
        self._wait(ALL_COMPLETED)

    def _wait(self, what: str) -> None:
        done, self._begun = wait(self._begun, return_when=what)
        for future in done:
            future.result()

    def _commit(self, unit: Unit) -> None:
        # named by the samples that it holds, in their order, whichever was decided first: made again it is the same,
        # and what another run puts together of some of them, where storage has no locks, is another
        order = sorted(range(len(unit.rows)), key=lambda place: self._key(unit.rows[place]))
        rows = [unit.rows[place] for place in order]
        name = f"{unit.name}-{digest([self._key(row) for row in rows])}"
        if self._latents and (kept := [place for place in order if not unit.rows[place]["reason"]]):
            shard = self._write_latents(name, [unit.rows[place] for place in kept], np.concatenate(unit.latents)[kept])
            rows = [row if row["reason"] else {**row, **shard} for row in rows]
        self._ledger.commit(name, rows, SCHEMA)

    def _key(self, row: dict[str, Any]) -> tuple[int, int, int]:
        return self._classes.index(row["class"]), row["index"], row["attempt"]

    def _write_latents(self, name: str, kept: Rows, mu: np.ndarray) -> dict[str, str]:
        """Write the latents of the samples that are kept; their columns of SCHEMA."""
        columns: dict[str, list[Any]] = {
            "subject_id": [f"sub-{row['sample_id'].replace('-', '')}" for row in kept],
            "label": [self._classes.index(row["class"]) for row in kept],
            "split": ["train"] * len(kept),
            "source": [row["sample_id"] for row in kept],
        }
        folder, file = storage.join(self._folder, LATENTS), f"part-{name}.parquet"
        written = write_latents(folder, file, columns, mu, np.full_like(mu, LOGVAR[0]), "float32")
        return {"latents": f"{LATENTS}/{file}", "latents_sha256": written["sha256"]}
