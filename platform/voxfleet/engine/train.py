"""The train job: latent shards to a DiT3D model package."""

from voxfleet.config.jobs import SamplesConfig, TrainConfig
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.engine.console import say
from voxfleet.engine.job import absolute_paths
from voxfleet.engine.mosaic import SampleMosaic
from voxfleet.engine.output import as_document
from voxfleet.engine.training_job import train_package, training_outputs
from voxfleet.errors import UserError
from voxfleet.models import DiT3D
from voxfleet.models.summary import summarize
from voxfleet.packages import read_package_config
from voxfleet.train.diffusion import DiffusionRecipe

_PASSES = 3  # of the network in a training step: the backward pass counts as two


def run(config: TrainConfig) -> None:
    """Train the network and package its averaged weights."""
    manifest = read_manifest(config.data, "latents")
    outputs = training_outputs("train", config, manifest)
    if outputs.are_done():
        return
    check_model(config, manifest)
    for warning in config.warnings:
        say(f"train: warning: {warning}", level="warning")
    recipe = recipe_of(config, manifest)
    train_package(
        outputs,
        config,
        kind="model",
        manifest=manifest,
        columns=("mu", "logvar"),
        recipe=recipe,
        flops=_PASSES
        * summarize(lambda: DiT3D(config.model), (config.model.in_channels, *config.model.input_size)).flops,
        mosaic=SampleMosaic(_absolute(config.samples), recipe, manifest),
        mosaic_every=config.samples.every,
        weights=dict,
        document={
            "diffusion": as_document(config.diffusion),
            "mean": manifest.mean,
            "std": manifest.std,
            "geometry": manifest.geometry,
            "classes": list(manifest.classes),
            "limits": manifest.limits,
            "suffix": manifest.suffix,
            "autoencoder": manifest.autoencoder,
        },
    )


def _absolute(samples: SamplesConfig) -> SamplesConfig:
    """``samples`` for workers, which run in other folders."""
    return samples if samples.autoencoder is None else absolute_paths(samples, "autoencoder")


def recipe_of(config: TrainConfig, manifest: Manifest) -> DiffusionRecipe:
    """How ``config`` trains on the latents of ``manifest``."""
    return DiffusionRecipe(
        config.model,
        config.diffusion,
        tuple(manifest.mean),
        tuple(manifest.std),
        gradient_checkpointing=config.gradient_checkpointing,
        augment=config.augment,
    )


def check_model(config: TrainConfig, manifest: Manifest) -> None:
    """Make sure that the network and what is asked for fit the latents.

    Raises:
        UserError: names the key that does not.
    """
    expected = {
        "model.in_channels": (config.model.in_channels, manifest.shape[0]),
        "model.input_size": (config.model.input_size, manifest.shape[1:]),
        "model.num_classes": (config.model.num_classes, len(manifest.classes)),
    }
    for key, (ours, theirs) in expected.items():
        if ours != theirs:
            raise UserError(f"{key} is {ours}, but the latents in {config.data} have {theirs}; set {key} to {theirs}")
    if config.samples.autoencoder:
        package = read_package_config(config.samples.autoencoder, "autoencoder")
        if package["fingerprint"] != manifest.autoencoder:
            raise UserError(
                f"samples.autoencoder {config.samples.autoencoder} is not the one that made the latents in "
                f"{config.data}; give that one, or null for pictures of latents"
            )
