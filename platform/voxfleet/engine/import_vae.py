"""The import-vae job: the checkpoint of an autoencoder that was trained elsewhere to an autoencoder package."""

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor

from voxfleet import __version__, storage
from voxfleet.config.jobs import ImportVaeConfig
from voxfleet.data.shards import Manifest, read_manifest, read_shard, tensors
from voxfleet.engine.console import say
from voxfleet.engine.job import recorded
from voxfleet.engine.output import Output
from voxfleet.errors import UserError
from voxfleet.foreign import parse_foreign
from voxfleet.metrics.image import psnr
from voxfleet.models.vae import AutoencoderConfig, build_autoencoder, decode, encode
from voxfleet.models.vae_weights import check_weights, unwrap
from voxfleet.packages import CONFIG, architecture, write_package

_TRIED_LATENT = 8  # voxels along an edge of the latent of the crop that is tried


def run(config: ImportVaeConfig) -> None:
    """Check the checkpoint and package it."""
    manifest = read_manifest(config.data, "volumes") if config.data else None
    data = storage.read_bytes(config.checkpoint)
    sha256 = hashlib.sha256(data).hexdigest()
    inputs = {"checkpoint": sha256[:16]} | ({"data": manifest.digest} if manifest else {})
    output = Output("import-vae", config.output, config, inputs)
    if output.is_done(CONFIG):
        return
    shape, geometry = _volumes(config, manifest)
    weights = _weights(config, data)
    quality = _try(config, weights, manifest)
    with recorded(output) as tracker:
        document = {
            "architecture": architecture(config.model),
            "shape": list(shape),
            "geometry": geometry,
            "imported": {"voxfleet": __version__, "checkpoint": config.checkpoint, "sha256": sha256},
        }
        fingerprint = write_package(config.output, "autoencoder", weights, document)
        tracker.log_params({"fingerprint": fingerprint})
    say(f"import-vae: autoencoder {fingerprint[:12]} in {config.output}{quality}")


def _volumes(config: ImportVaeConfig, manifest: Manifest | None) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Shape and geometry of the volumes that the autoencoder is for."""
    if manifest is None:
        assert config.shape  # the configuration sees to it
        return config.shape, config.geometry()
    try:
        config.model.latent_shape(manifest.shape)
    except ValueError as error:
        raise UserError(f"the volumes in {config.data} do not fit the autoencoder: {error}") from error
    return manifest.shape, manifest.geometry


def _weights(config: ImportVaeConfig, data: bytes) -> dict[str, Tensor]:
    """The weights in the checkpoint, which are those of the architecture."""
    try:
        weights = unwrap(parse_foreign(config.checkpoint, data))
        check_weights(weights, config.model)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{config.checkpoint}: {error}") from error
    return weights


@torch.inference_mode()
def _try(config: ImportVaeConfig, weights: dict[str, Tensor], manifest: Manifest | None) -> str:
    """Encode and decode a small volume; what there is to say of the result.

    Raises:
        UserError: if it is not finite.
    """
    # a small volume has too few slices for num_splits, which changes no number
    model = build_autoencoder(dataclasses.replace(config.model, num_splits=1)).eval()
    model.load_state_dict(weights)
    volume = _crop(config.model, config.data, manifest)
    mu, logvar = encode(model, volume)
    restored = decode(model, mu)
    if not all(value.isfinite().all() for value in (mu, logvar, restored)):
        raise UserError(
            f"{config.checkpoint} gives values that are not finite for a small volume; compare norm_num_groups and "
            "use_convtranspose, which the weights do not show, with the configuration it was trained with"
        )
    if manifest is None:
        return "; its weights do not show whether norm_num_groups and use_convtranspose are right: set data to see"
    decibel = psnr(restored.clamp(0, 1), volume).item()
    return f"; it restores the middle of a validation volume with a PSNR of {decibel:.1f} dB"


def _crop(config: AutoencoderConfig, folder: str | None, manifest: Manifest | None) -> Tensor:
    """(1, 1, D, H, W): the middle of the first validation volume, or noise where there is none."""
    edge = _TRIED_LATENT * config.downsampling
    if manifest is None or folder is None:
        return torch.rand(1, 1, edge, edge, edge, generator=torch.Generator().manual_seed(0))
    table = next(table for table in map(read_shard, manifest.files(folder)) if "val" in table["split"].to_pylist())
    volume = torch.tensor(tensors(table, "volume")[table["split"].to_pylist().index("val")])
    starts = [max(0, size - edge) // 2 for size in volume.shape]
    return volume[tuple(slice(start, start + edge) for start in starts)][None, None]
