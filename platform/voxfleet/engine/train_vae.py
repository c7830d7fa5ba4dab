"""The train-vae job: volume shards to an autoencoder package."""

from voxfleet.config.jobs import TrainVaeConfig
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.engine.training_job import train_package, training_outputs
from voxfleet.errors import UserError
from voxfleet.packages import CONFIG
from voxfleet.train.autoencoder import AutoencoderRecipe, autoencoder_weights


def run(config: TrainVaeConfig) -> None:
    """Train the autoencoder and package its averaged weights."""
    manifest = read_manifest(config.data, "volumes")
    outputs = training_outputs("train-vae", config, manifest)
    if outputs.package.is_done(CONFIG):
        return
    _check_shape(config, manifest)
    train_package(
        outputs,
        config,
        kind="autoencoder",
        manifest=manifest,
        columns=("volume",),
        recipe=AutoencoderRecipe(config.model, config.loss),
        weights=autoencoder_weights,
        document={"shape": list(manifest.shape), "geometry": manifest.geometry},
    )


def _check_shape(config: TrainVaeConfig, manifest: Manifest) -> None:
    try:
        config.model.latent_shape(manifest.shape)
    except ValueError as error:
        raise UserError(f"the volumes in {config.data} do not fit the autoencoder: {error}") from error
