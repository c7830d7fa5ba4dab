"""Latents of random numbers, and packages of random weights, for the benchmarks beside this file."""

from pathlib import Path

import numpy as np
import torch

from voxfleet import storage
from voxfleet.data.geometry import geometry_of
from voxfleet.data.shards import MANIFEST, Manifest, shard_name, table_bytes, tensor_table, write_manifest
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.vae import AutoencoderConfig, build_autoencoder
from voxfleet.packages import architecture, is_complete, write_package

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


def make_packages(folder: str, model: DiT3DConfig, autoencoder: AutoencoderConfig) -> tuple[str, str]:
    """A model package and the package of its autoencoder, of random weights, where there are none yet."""
    folders = storage.join(folder, "model"), storage.join(folder, "autoencoder")
    if is_complete(folders[0]):
        return folders
    torch.manual_seed(0)
    shape = [edge * autoencoder.downsampling for edge in model.input_size]
    geometry = geometry_of(np.diag([2.0, 2.0, 2.0, 1.0]))
    common = {"classes": ["HC", "TLE"], "geometry": geometry, "limits": {}}
    weights = {name: value.contiguous() for name, value in build_autoencoder(autoencoder).state_dict().items()}
    document = {"architecture": architecture(autoencoder), "shape": shape, **common}
    mark = write_package(folders[1], "autoencoder", weights, document)
    document = {
        "architecture": architecture(model),
        "diffusion": {"target": "x0"},
        "mean": [0.0] * model.in_channels,
        "std": [1.0] * model.in_channels,
        "autoencoder": mark,
        **common,
    }
    network = DiT3D(model)
    for parameter in network.parameters():  # its last layers begin at zero, from which all samples would be one
        torch.nn.init.normal_(parameter, std=0.1)
    write_package(folders[0], "model", dict(network.state_dict()), document)
    return folders
