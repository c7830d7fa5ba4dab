"""Latents of random numbers, for the benchmarks beside this file."""

from pathlib import Path

import numpy as np

from voxfleet import storage
from voxfleet.data.shards import MANIFEST, Manifest, shard_name, table_bytes, tensor_table, write_manifest

_PER_SHARD = 64


def make_latents(folder: str, splits: list[str], shape: tuple[int, ...], dtype: type = np.float32) -> None:
    """A finished folder of latents, one of each entry of ``splits``, where there is none yet."""
    if Path(folder, MANIFEST).exists():
        return
    rng = np.random.default_rng(0)
    shards = []
    for index, start in enumerate(range(0, len(splits), _PER_SHARD)):
        split = splits[start : start + _PER_SHARD]
        numbers = range(start, start + len(split))
        columns = {
            "subject_id": [f"sub-{number:05d}" for number in numbers],
            "label": [number % 2 for number in numbers],
            "split": split,
            "source": ["made up"] * len(split),
        }
        tensors = {
            "mu": rng.standard_normal((len(split), *shape), dtype=np.float32).astype(dtype),
            "logvar": (rng.standard_normal((len(split), *shape), dtype=np.float32) - 4).astype(dtype),
        }
        data = table_bytes(tensor_table(columns, tensors))
        sha256 = storage.write_bytes(storage.join(folder, shard_name(index)), data)
        shards.append({"file": shard_name(index), "rows": len(split), "sha256": sha256})
    manifest = Manifest(
        kind="latents",
        shape=shape,
        classes=("HC", "TLE"),
        counts={},
        mean=[0.0] * shape[0],
        std=[1.0] * shape[0],
        geometry={},
        limits={},
        shards=shards,
    )
    write_manifest(folder, manifest)
