"""The encode job: volume shards to latent shards, in a pool of actors that hold the autoencoder."""

import dataclasses
from typing import Any

import numpy as np
import torch

from voxfleet import storage
from voxfleet.config.jobs import EncodeConfig
from voxfleet.data.latents import COLUMNS, add_mirror_images, manifest_fields, write_latents
from voxfleet.data.shards import MANIFEST, Manifest, read_manifest, read_shard, tensors, write_manifest
from voxfleet.engine.cluster import gpus_per_worker
from voxfleet.engine.console import Progress
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import LEDGER, Output
from voxfleet.engine.units import Ledger, Pool, Rows, run_units
from voxfleet.errors import UserError
from voxfleet.packages import autoencoder_config, load_autoencoder, read_package_config


def run(config: EncodeConfig) -> None:
    """Make the latent shards."""
    volumes = read_manifest(config.data, "volumes")
    package = read_package_config(config.autoencoder, "autoencoder")
    inputs = {"data": volumes.digest, "autoencoder": package["fingerprint"]}
    output = Output("encode", config.output, config, inputs)
    if output.is_done(MANIFEST):
        return
    shape = _latent_shape(config, volumes, package)
    mirror_axis = _check_mirror_axis(config, volumes)
    there = absolute_paths(config, "output", "data", "autoencoder")
    with job_session(output, workers=True) as tracker:
        gpus = gpus_per_worker(config.resources)
        progress = Progress("encode", sum(shard["rows"] for shard in volumes.shards), "volumes")
        rows = run_units(
            {shard["file"]: shard["rows"] for shard in volumes.shards},
            Encoder,
            Ledger(storage.join(there.output, LEDGER)),
            progress,
            pool=Pool(workers=config.resources.workers, cpus=config.resources.cpus_per_worker, gpus=gpus),
            arguments=(there, gpus > 0, mirror_axis),
            weight=int,
        )
        manifest = dataclasses.replace(
            volumes,
            kind="latents",
            shape=shape,
            counts=volumes.counts if mirror_axis is None else _add_mirrored(volumes.counts),
            autoencoder=package["fingerprint"],
            **manifest_fields(unit[0] for unit in rows.values()),
        )
        write_manifest(there.output, manifest)
        tracker.log_metrics([{f"latent_std_{channel}": std for channel, std in enumerate(manifest.std)}])
        progress.finish(f"latents {shape}, std {', '.join(f'{v:.2f}' for v in manifest.std)}, in {config.output}")


def _latent_shape(config: EncodeConfig, volumes: Manifest, package: dict[str, Any]) -> tuple[int, ...]:
    try:
        return autoencoder_config(package).latent_shape(volumes.shape)
    except ValueError as error:
        raise UserError(f"the volumes in {config.data} do not fit {config.autoencoder}: {error}") from error


def _check_mirror_axis(config: EncodeConfig, volumes: Manifest) -> int | None:
    """Return the axis along which training volumes are mirrored, None for no mirror images.

    Raises:
        UserError: if they are asked for, but a mirrored head may be of another class.
    """
    axis = volumes.geometry.get("mirror_axis") if config.mirrored else None
    if config.mirrored and axis is None:
        raise UserError(
            f"mirrored is true, but {config.data} does not say that a mirrored head is one of the same class; set it "
            "to false, or prepare the volumes with --source.mirrored true if it is"
        )
    return axis


def _add_mirrored(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Add a mirror image of each training row to ``counts`` of rows by split and class."""
    return {
        split: {name: count * (2 if split == "train" else 1) for name, count in by_class.items()}
        for split, by_class in counts.items()
    }


class Encoder:
    """An actor that encodes whole shards."""

    def __init__(self, config: EncodeConfig, gpu: bool, mirror_axis: int | None) -> None:
        torch.set_num_threads(config.resources.cpus_per_worker)
        self.config, self.mirror_axis = config, mirror_axis
        self.device = "cuda" if gpu else "cpu"
        self.autoencoder = load_autoencoder(config.autoencoder, self.device)

    def __call__(self, name: str, _: int) -> Rows:
        """Encode shard ``name``: one row with its sums over the training split."""
        table = read_shard(storage.join(self.config.data, name))
        volumes, columns = tensors(table, "volume"), {key: table[key].to_pylist() for key in COLUMNS}
        if self.mirror_axis is not None:
            volumes, columns = add_mirror_images(volumes, columns, self.mirror_axis)
        mu, logvar = self._encode(volumes)
        if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
            raise UserError(f"{self.config.autoencoder} gives latents that are not finite for {name}; train it again")
        return [write_latents(self.config.output, name, columns, mu, logvar, self.config.dtype)]

    def _encode(self, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batches = torch.from_numpy(volumes)[:, None].split(self.config.batch_size)
        mus, logvars = zip(*(self.autoencoder.encode(batch.to(self.device)) for batch in batches), strict=True)
        return torch.cat(mus).float().cpu().numpy(), torch.cat(logvars).float().cpu().numpy()
