"""Campaigns: which samples are made, and in which batches, as pure functions of the request and of what is there.

A sample is (class, index); what is drawn for it is an attempt. Attempt 0 comes first; where the gate rejects it, the
next one has a seed of its own. So a sample is the same however large its campaign is, and may be made again by itself.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxfleet.data.quality import CHECKS
from voxfleet.diffusion.seeds import row_seed
from voxfleet.errors import UserError

# a row of the ledger: an attempt that was kept, or rejected for a reason
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("sample_id", "class")),
        *((name, pa.int64()) for name in ("index", "attempt", "seed")),
        *((name, pa.string()) for name in ("reason", "file", "sha256", "sidecar_sha256")),
        *((name, pa.string()) for name in ("latents", "latents_sha256")),
        ("bytes", pa.int64()),
        ("checks", pa.struct([(name, pa.float64()) for name in (*CHECKS, "novelty")])),
        *((name, pa.int64()) for name in ("batch_size", "decode_batch_size", "threads")),
        *((name, pa.string()) for name in ("dtype", "decode_dtype", "mode", "device")),
    ]
)


@dataclass(frozen=True, kw_only=True)
class CampaignConfig:
    """What is asked for.

    Args:
        samples: synthetic volumes of each class: one number for every class, or a number a class, {HC: 10, TLE: 20}.
        mixture: the share of each class, {HC: 3, TLE: 1}; samples is then the number of all together.
        seed: base seed; a sample depends on it, its class and its index alone, so that a larger campaign repeats the
            samples of a smaller one.
    """

    samples: int | dict[str, int] = 16
    mixture: dict[str, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = self.samples.values() if isinstance(self.samples, dict) else [self.samples]
        if min(numbers, default=-1) < 0 or not sum(numbers):
            raise ValueError(f"samples is {self.samples}; it must be 0 or more for each class, and not 0 for all")
        if self.mixture is not None:
            if isinstance(self.samples, dict):
                raise ValueError(f"mixture is {self.mixture}, but samples gives a number a class; give one of the two")
            shares = self.mixture.values()
            if not all(np.isfinite(share) and share >= 0 for share in shares) or not sum(shares):
                raise ValueError(f"mixture is {self.mixture}; it must be 0 or more for each class, and not 0 for all")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")


@dataclass(frozen=True)
class Sample:
    """An attempt at a sample of a campaign."""

    label: int
    class_name: str
    index: int
    base_seed: int
    attempt: int = 0

    @property
    def seed(self) -> int:
        """The seed of its noise."""
        return row_seed(self.base_seed, self.label, self.index, self.attempt)

    @property
    def sample_id(self) -> str:
        """``syn-TLE-0000123``: never changes, however the campaign grows."""
        return f"syn-{self.class_name}-{self.index:07d}"

    @property
    def subject_id(self) -> str:
        """The BIDS form of the id, ``sub-synTLE0000123``."""
        return f"sub-syn{self.class_name}{self.index:07d}"

    def place(self, batch_size: int) -> int:
        """Its place in a batch, always the same: matrix products may round a row by its place."""
        return self.index % batch_size

    def again(self) -> "Sample":
        """The next attempt."""
        return replace(self, attempt=self.attempt + 1)


def counts(config: CampaignConfig, classes: Sequence[str]) -> tuple[int, ...]:
    """How many samples of each class are asked for.

    A mixture is cut by the divisor method of Webster, in which no class loses samples when the campaign grows.

    Raises:
        UserError: if a class is not one of the model's.
    """
    asked = config.samples if isinstance(config.samples, dict) else config.mixture or dict.fromkeys(classes, 1)
    for name in asked:
        if name not in classes:
            key = "samples" if isinstance(config.samples, dict) else "mixture"
            raise UserError(f"campaign.{key} names class {name!r}; the model knows {', '.join(classes)}")
    if isinstance(config.samples, dict):
        return tuple(config.samples.get(name, 0) for name in classes)
    if config.mixture is None:
        return (config.samples,) * len(classes)
    shares = np.array([config.mixture.get(name, 0.0) for name in classes])
    odd = 2 * np.arange(config.samples) + 1
    claims = np.concatenate([share / odd for share in shares])
    chosen = np.argsort(-claims, kind="stable")[: config.samples]
    return tuple(np.bincount(chosen // config.samples, minlength=len(classes)).tolist())


@dataclass(frozen=True)
class Plan:
    """All samples of a campaign, and what is known of them.

    Attributes:
        classes: of the model; their order gives the labels.
        seed: base seed.
        kept: for each class, whether each of its samples is there.
        attempts: for each class, how many attempts of each sample were rejected.
    """

    classes: tuple[str, ...]
    seed: int
    kept: tuple[np.ndarray, ...]
    attempts: tuple[np.ndarray, ...]

    @property
    def total(self) -> int:
        """How many samples are asked for."""
        return sum(len(kept) for kept in self.kept)

    @property
    def done(self) -> int:
        """How many of them are there."""
        return sum(int(kept.sum()) for kept in self.kept)

    def missing(self, batch_size: int, most_attempts: int) -> Iterator[list[Sample]]:
        """What is to be drawn, in batches, lowest indices first.

        Samples of which ``most_attempts`` were rejected are passed over.
        """
        wanted = [~kept & (tried < most_attempts) for kept, tried in zip(self.kept, self.attempts, strict=True)]
        index = np.concatenate([np.flatnonzero(mask) for mask in wanted])
        label = np.repeat(np.arange(len(wanted)), [int(mask.sum()) for mask in wanted])
        order = np.lexsort((label, index))
        index, label = index[order], label[order]
        for part in _parts(index % batch_size):
            yield [self._sample(int(label[row]), int(index[row])) for row in part]

    def exhausted(self, most_attempts: int) -> list[Sample]:
        """The samples of which ``most_attempts`` were rejected."""
        return [
            self._sample(label, int(index))
            for label, (kept, tried) in enumerate(zip(self.kept, self.attempts, strict=True))
            for index in np.flatnonzero(~kept & (tried >= most_attempts))
        ]

    def _sample(self, label: int, index: int) -> Sample:
        return Sample(label, self.classes[label], index, self.seed, int(self.attempts[label][index]))


def plan(config: CampaignConfig, classes: tuple[str, ...], ledger: pa.Table) -> Plan:
    """The plan of a campaign of which the ``ledger`` (of SCHEMA) tells what is there.

    Raises:
        UserError: if a class is not known, or more is there than is asked for.
    """
    kept, attempts = [], []
    for name, count in zip(classes, counts(config, classes), strict=True):
        rows = ledger.filter(pc.equal(ledger["class"], name))
        index = rows["index"].to_numpy()
        if len(index) and index.max() >= count:
            raise UserError(
                f"campaign.samples asks for {count} of class {name}, but sample {index.max()} of it is there; a "
                "campaign may only grow: ask for more, or name another output"
            )
        is_kept = pc.equal(rows["reason"], "").to_numpy(zero_copy_only=False).astype(bool)
        kept.append(np.zeros(count, dtype=bool))
        kept[-1][index[is_kept]] = True
        attempts.append(np.zeros(count, dtype=np.int64))
        np.maximum.at(attempts[-1], index[~is_kept], rows["attempt"].to_numpy()[~is_kept] + 1)
    return Plan(classes, config.seed, tuple(kept), tuple(attempts))


@dataclass
class Unit:
    """Attempts that are committed together, once all are decided.

    Attributes:
        name: that of its first attempt.
        waits_for: batches that are not decided.
        rows: of those that are, by SCHEMA, in the order in which they were decided.
        latents: of these rows, batch by batch.
    """

    name: str
    waits_for: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    latents: list[Any] = field(default_factory=list)


class Queue:
    """What is drawn next: what is missing, and again what was rejected, as soon as that fills a batch.

    Args:
        missing: of the plan.
        batch_size: samples of a batch.
        unit_size: attempts of a unit, at least.
        most_attempts: how often a sample is drawn.
    """

    def __init__(self, missing: Iterator[list[Sample]], batch_size: int, unit_size: int, most_attempts: int) -> None:
        self._missing, self._batch_size, self._unit_size = missing, batch_size, unit_size
        self._most_attempts = most_attempts
        self._batches: deque[list[Sample]] = deque()
        self._again: list[Sample] = []
        self._units: dict[Sample, Unit] = {}  # by the first sample of each of their batches

    def next(self) -> list[Sample] | None:
        """A batch to draw; None for now."""
        if not self._batches:
            self._open()
        return self._batches.popleft() if self._batches else None

    def _open(self) -> None:
        found: list[list[Sample]] = []
        if len(self._again) < max(self._unit_size, self._batch_size):
            size = 0
            while size < self._unit_size and (batch := next(self._missing, None)):
                found.append(batch)
                size += len(batch)
        if not found:
            found, self._again = batches(self._again, self._batch_size), []
        if found:
            first = found[0][0]
            unit = Unit(f"{first.sample_id}.{first.attempt}", len(found))
            self._units.update((batch[0], unit) for batch in found)
            self._batches.extend(found)

    def decided(self, batch: list[Sample], rows: list[dict[str, Any]], latents: Any) -> Unit | None:
        """Take the rows of a batch; returns its unit if that is all decided. What is rejected is drawn again."""
        unit = self._units.pop(batch[0])
        unit.waits_for -= 1
        unit.rows += rows
        unit.latents.append(latents)
        tried = [sample.again() for sample, row in zip(batch, rows, strict=True) if row["reason"]]
        self._again += [sample for sample in tried if sample.attempt < self._most_attempts]
        return None if unit.waits_for else unit


def batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """``samples`` in as few batches as their places allow."""
    places = np.array([sample.place(size) for sample in samples], dtype=np.int64)
    return [[samples[row] for row in part] for part in _parts(places)]


def _parts(places: np.ndarray) -> list[np.ndarray]:
    """Rows in as few parts as possible, in none of which a place is taken twice; each part in the order of the rows."""
    if not len(places):
        return []
    order = np.argsort(places, kind="stable")
    starts = np.flatnonzero(np.diff(places[order], prepend=-1))
    part = np.empty(len(places), dtype=np.int64)
    part[order] = np.arange(len(places)) - np.repeat(starts, np.diff(starts, append=len(places)))
    rows = np.argsort(part, kind="stable")
    return np.split(rows, np.flatnonzero(np.diff(part[rows])) + 1)
