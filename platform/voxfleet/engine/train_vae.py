"""The train-vae job: volume shards to an autoencoder package."""

import hashlib

import torch

from voxfleet import storage
from voxfleet.config.jobs import TrainVaeConfig
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.engine.job import absolute_paths
from voxfleet.engine.training_job import train_package, training_outputs
from voxfleet.errors import UserError
from voxfleet.train.adversary import smallest_edge
from voxfleet.train.autoencoder import AutoencoderLossConfig, AutoencoderRecipe, autoencoder_weights, load_features


def run(config: TrainVaeConfig) -> None:
    """Train the autoencoder and package its averaged weights."""
    manifest = read_manifest(config.data, "volumes")
    outputs = training_outputs("train-vae", config, manifest, _digests(config.loss))
    if outputs.are_done():
        return
    _check_shape(config, manifest)
    train_package(
        outputs,
        config,
        kind="autoencoder",
        manifest=manifest,
        columns=("volume",),
        recipe=AutoencoderRecipe(config.model, _checked(config.loss)),
        weights=autoencoder_weights,
        document={"shape": list(manifest.shape), "geometry": manifest.geometry},
    )


def _digests(loss: AutoencoderLossConfig) -> dict[str, str]:
    """Of the files that decide what is learned beside the shards."""
    if loss.perceptual_weights is None:
        return {}
    return {"perceptual_weights": hashlib.sha256(storage.read_bytes(loss.perceptual_weights)).hexdigest()[:16]}


def _check_shape(config: TrainVaeConfig, manifest: Manifest) -> None:
    try:
        config.model.latent_shape(manifest.shape)
    except ValueError as error:
        raise UserError(f"the volumes in {config.data} do not fit the autoencoder: {error}") from error
    layers, edge = config.loss.discriminator_layers, min(manifest.shape)
    if config.loss.adversarial_weight and edge < smallest_edge(layers):
        raise UserError(
            f"loss.discriminator_layers is {layers}, for volumes of {smallest_edge(layers)} voxels an edge or more; "
            f"those in {config.data} have {edge}: lower it"
        )


def _checked(loss: AutoencoderLossConfig) -> AutoencoderLossConfig:
    """``loss`` for workers, which run in other folders, its file tried before they start."""
    if loss.perceptual_weights is None:
        return loss
    load_features(loss.perceptual_weights, torch.device("cpu"))
    return absolute_paths(loss, "perceptual_weights")
