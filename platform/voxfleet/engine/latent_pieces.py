"""Measuring latents in pieces: sums over the channels of a shard, and a vector for each of its latents.

Letters: n latents, C channels, d/h/w voxels of a latent, F values of a vector.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from voxfleet import storage
from voxfleet.config.visualisation import LatentsConfig
from voxfleet.data.index import Index, read_index
from voxfleet.data.latents import MIRRORED
from voxfleet.data.shards import MANIFEST, Manifest, read_manifest, read_shard, table_bytes, tensor_table, tensors
from voxfleet.data.synthetic import LATENTS
from voxfleet.engine.console import Progress
from voxfleet.engine.measures import MEASURES, pooled
from voxfleet.engine.output import LEDGER
from voxfleet.engine.units import Ledger, Rows, run_units
from voxfleet.errors import UserError
from voxfleet.metrics.channels import ChannelSums

REAL, SYNTHETIC = "real", "synthetic"
TRAIN = "train"
_AT_ONCE = 16  # latents of a shard that are widened to float64
_VALUES = 1 << 12  # of a vector: a matrix of their products takes 128 MB
_BLOCK = 512  # vectors that are in memory


@dataclass(frozen=True)
class LatentSet:
    """Latent shards.

    Attributes:
        folder: of the shards.
        manifest: theirs.
        index: of each split.
    """

    folder: str
    manifest: Manifest
    index: dict[str, Index]

    def read(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """mu and logvar (n, C, d, h, w) of ``rows``, counted over all shards."""
        ends = np.cumsum([shard["rows"] for shard in self.manifest.shards])
        files = self.manifest.files(self.folder)
        found = []
        for row in rows:
            shard = int(np.searchsorted(ends, row, side="right"))
            place = row - int(ends[shard]) + self.manifest.shards[shard]["rows"]
            found.append(read_shard(files[shard], ["mu", "logvar"]).slice(place, 1))
        mu, logvar = (np.concatenate([tensors(table, name) for table in found]) for name in ("mu", "logvar"))
        return mu, logvar


def open_latents(config: LatentsConfig) -> dict[str, LatentSet]:
    """The real latents, and the synthetic ones if there are any.

    Raises:
        UserError: if a folder holds no latents, or the two do not go together.
    """
    real = _open(config.data)
    if len(real.index.get(TRAIN, ())) < 3:
        raise UserError(f"{config.data} has less than three latents in split train; give more")
    if not config.synthetic:
        return {REAL: real}
    inner = storage.join(config.synthetic, LATENTS)
    synthetic = _open(inner if storage.exists(storage.join(inner, MANIFEST)) else config.synthetic)
    _check_comparable(config, real.manifest, synthetic.manifest)
    return {REAL: real, SYNTHETIC: synthetic}


def _open(folder: str) -> LatentSet:
    uri = storage.absolute(folder)
    manifest = read_manifest(uri, "latents")
    return LatentSet(uri, manifest, read_index(uri, manifest, ("mu", "logvar")))


def _check_comparable(config: LatentsConfig, real: Manifest, synthetic: Manifest) -> None:
    for key, remedy in (("shape", "latents of one shape"), ("autoencoder", "latents of one autoencoder")):
        ours, theirs = (_short(getattr(manifest, key)) for manifest in (real, synthetic))
        if ours != theirs:
            raise UserError(
                f"synthetic {config.synthetic} has {key} {theirs}, data {config.data} has {ours}; give {remedy}"
            )
    if unknown := [name for name in synthetic.classes if name not in real.classes]:
        raise UserError(
            f"synthetic {config.synthetic} has class {unknown[0]}; those of data {config.data} are "
            f"{', '.join(real.classes)}"
        )


def _short(value: object) -> object:
    return value[:12] if isinstance(value, str) else value


@dataclass(frozen=True)
class Pieces:
    """What was found of a set.

    Attributes:
        sums: over the training split, or all synthetic latents.
        files: of vectors, in the order of the shards.
        label_of: for each class of the set, its label in the real one.
        synthetic: whether a model made them.
    """

    sums: ChannelSums
    files: tuple[str, ...]
    label_of: tuple[int, ...]
    synthetic: bool

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Vectors (n, F) float32 of a part of the set, their labels (n,) and splits (n,), part after part."""
        held: list[pa.Table] = []
        for file in self.files:
            held.append(read_shard(file))
            if sum(map(len, held)) >= _BLOCK:
                yield self._block(held)
                held = []
        if held:
            yield self._block(held)

    def _block(self, held: list[pa.Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = pa.concat_tables(held)
        splits = np.array([SYNTHETIC if self.synthetic else split for split in table["split"].to_pylist()])
        return tensors(table, "vector"), np.array(self.label_of)[table["label"].to_numpy()], splits


def measure(folder: str, sets: dict[str, LatentSet]) -> dict[str, Pieces]:
    """What is found of each set, measured by a task a shard; shards that an earlier run measured are kept.

    Raises:
        UserError: if a shard is damaged, or a latent is not finite.
    """
    real = sets[REAL].manifest
    work = {
        f"{name}-{shard['sha256'][:16]}-{number:05d}": {"set": name, "shard": uri}
        for name, latents in sets.items()
        for number, (shard, uri) in enumerate(
            zip(latents.manifest.shards, latents.manifest.files(latents.folder), strict=True)
        )
    }
    progress = Progress("latents", len(work), "shards")
    ledger = Ledger(storage.join(folder, LEDGER))
    rows = run_units(work, functools.partial(_measure_shard, folder, real.mean, real.std), ledger, progress)
    total = sum(len(index) for latents in sets.values() for index in latents.index.values())
    progress.finish(f"{total} latents measured")
    found = {}
    for name, latents in sets.items():
        mine = [rows[unit][0] for unit, content in work.items() if content["set"] == name]
        sums = [ChannelSums.from_document(row["sums"]) for row in mine if row["sums"]]
        found[name] = Pieces(
            sums=functools.reduce(ChannelSums.merge, sums),
            files=tuple(storage.join(folder, row["file"]) for row in mine),
            label_of=tuple(real.classes.index(class_name) for class_name in latents.manifest.classes),
            synthetic=name == SYNTHETIC,
        )
    return found


def _measure_shard(
    folder: str, mean: Sequence[float], std: Sequence[float], unit: str, content: dict[str, str]
) -> Rows:
    """Sums over the latents of a shard that count, and the file of the vectors of all."""
    table = read_shard(content["shard"], ["label", "split", MIRRORED, "mu", "logvar"])
    mu, logvar = tensors(table, "mu"), tensors(table, "logvar")
    split = np.array(table["split"].to_pylist())
    counts = np.full(len(mu), True) if content["set"] == SYNTHETIC else split == TRAIN
    try:
        parts = [
            ChannelSums.of(mu[rows], logvar[rows], mean, std)
            for rows in np.array_split(np.flatnonzero(counts), -(-int(counts.sum()) // _AT_ONCE) or 1)
            if len(rows)
        ]
    except ValueError as error:
        raise UserError(f"{content['shard']}: {error}") from error
    vectors = np.concatenate([vectors_of(part, mean, std) for part in np.array_split(mu, -(-len(mu) // _AT_ONCE))])
    file = f"{MEASURES}/{unit}.parquet"
    columns = {
        "label": table["label"].to_pylist(),
        "split": np.where(table[MIRRORED].to_numpy(), MIRRORED, split).tolist(),  # no people: a split of their own
    }
    storage.write_bytes(storage.join(folder, file), table_bytes(tensor_table(columns, {"vector": vectors})))
    return [{"file": file, "sums": functools.reduce(ChannelSums.merge, parts).document() if parts else None}]


def vectors_of(mu: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Standardised latents (n, F) float32 of ``mu`` (n, C, d, h, w), pooled where they are large."""
    shift, scale = (np.array(values, dtype=np.float32)[:, None, None, None] for values in (mean, std))
    return pooled(torch.from_numpy((mu.astype(np.float32) - shift) / scale), _VALUES).flatten(1).numpy()
