"""Latents that are made up, and a small recipe for them."""

import numpy as np
import pytest

from voxfleet import storage
from voxfleet.data.shards import Manifest, shard_name, table_bytes, tensor_table, write_manifest

SHAPE = (2, 4, 4, 4)


def write_latents(folder, *, rows=11, val=3, shape=SHAPE, per_shard=5, dtype=np.float32, minority=2, seed=0):
    """A finished folder of latents: ``rows`` to train on; every ``minority``-th is of the second class."""
    rng = np.random.default_rng(seed)
    total = rows + val + 2
    split = ["train"] * rows + ["val"] * val + ["test"] * 2
    order = rng.permutation(total)  # the splits are mixed in the shards
    table = [
        {
            "subject_id": f"sub-{number:04d}",
            "label": int(number % minority == minority - 1),
            "split": split[order[number]],
        }
        for number in range(total)
    ]
    shards = []
    for index, start in enumerate(range(0, total, per_shard)):
        part = table[start : start + per_shard]
        columns = {key: [row[key] for row in part] for key in ("subject_id", "label", "split")}
        mu = rng.normal(size=(len(part), *shape)).astype(dtype)
        tensors = {"mu": mu, "logvar": np.full_like(mu, -4.0)}
        data = table_bytes(tensor_table({**columns, "source": columns["subject_id"]}, tensors))
        sha256 = storage.write_bytes(storage.join(folder, shard_name(index)), data)
        shards.append({"file": shard_name(index), "rows": len(part), "sha256": sha256})
    manifest = Manifest(
        kind="latents",
        shape=shape,
        classes=("HC", "TLE"),
        counts={name: {"HC": split.count(name), "TLE": 0} for name in ("train", "val", "test")},
        mean=[0.0] * shape[0],
        std=[1.0] * shape[0],
        geometry={"affine": np.eye(4).tolist(), "spacing_mm": [1, 1, 1], "orientation": "RAS"},
        limits={},
        shards=shards,
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def latents(tmp_path):
    """Writes a folder of latents; gives its path and manifest."""

    def write(name="latents", root=tmp_path, **options):
        folder = f"{root}/{name}"
        return folder, write_latents(folder, **options)

    return write
