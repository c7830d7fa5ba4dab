"""Latent shards: rows of mu and logvar, and the statistics of their draws mu + sigma * eps over the training split.

Letters: n rows, C channels, d/h/w voxels of a latent.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from voxfleet import storage
from voxfleet.data.shards import table_bytes, tensor_table
from voxfleet.errors import UserError

COLUMNS = ("subject_id", "label", "split", "source")
MIRRORED = "mirrored"  # column of latent shards: whether a row is of a mirror image
DTYPES = ("float32", "float16")


def check_dtype(dtype: str) -> None:
    """Raises ValueError if latents cannot be stored as ``dtype``."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be {' or '.join(DTYPES)}")


def write_latents(
    folder: str, name: str, columns: dict[str, list[Any]], mu: np.ndarray, logvar: np.ndarray, dtype: str
) -> dict[str, Any]:
    """Write shard ``name`` and return what its manifest needs: file, rows, sha256, and sums over the training split.

    Args:
        folder: where the shard goes.
        name: its file name.
        columns: COLUMNS of the rows, and MIRRORED where some are.
        mu: (n, C, d, h, w), finite.
        logvar: the same shape, finite.
        dtype: in which they are stored, one of DTYPES.

    Raises:
        UserError: if a value is too large for ``dtype``.
    """
    with np.errstate(over="ignore"):
        stored = {"mu": mu.astype(dtype), "logvar": logvar.astype(dtype)}
    if not all(np.isfinite(values).all() for values in stored.values()):
        raise UserError(f"latents of {columns['source'][0]} and others do not fit {dtype}; set dtype float32")
    columns = {MIRRORED: [False] * len(mu), **columns}
    sha256 = storage.write_bytes(storage.join(folder, name), table_bytes(tensor_table(columns, stored)))
    train = np.array(columns["split"]) == "train"
    return {"file": name, "rows": len(mu), "sha256": sha256, **_sums(mu[train], logvar[train])}


def add_mirror_images(
    volumes: np.ndarray, columns: dict[str, list[Any]], axis: int
) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """Append the mirror images, along ``axis``, of the training rows to ``volumes`` (n, D, H, W) and their COLUMNS."""
    train = np.flatnonzero(np.array(columns["split"]) == "train")
    rows = [*range(len(volumes)), *train.tolist()]
    columns = {key: [values[row] for row in rows] for key, values in columns.items()}
    columns[MIRRORED] = [place >= len(volumes) for place in range(len(rows))]
    return np.concatenate([volumes, np.flip(volumes[train], 1 + axis)]), columns


def _sums(mu: np.ndarray, logvar: np.ndarray) -> dict[str, Any]:
    """Per channel: the sum of the draws and of their squares, in expectation over eps."""
    axes = (0, 2, 3, 4)
    wide = mu.astype(np.float64)
    return {
        "train_numbers": mu.size // mu.shape[1],
        "sum": wide.sum(axis=axes).tolist(),
        "square": (wide**2 + np.exp(logvar.astype(np.float64))).sum(axis=axes).tolist(),
    }


def manifest_fields(written: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """``mean``, ``std`` and ``shards`` of the manifest, from what ``write_latents`` gave for each shard."""
    rows = list(written)
    numbers = sum(row["train_numbers"] for row in rows)
    mean = np.sum([row["sum"] for row in rows], axis=0) / numbers
    variance = np.sum([row["square"] for row in rows], axis=0) / numbers - mean**2
    return {
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "shards": [{key: row[key] for key in ("file", "rows", "sha256")} for row in rows],
    }
