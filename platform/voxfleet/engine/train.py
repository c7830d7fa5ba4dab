"""The train job: latent shards to a DiT3D model package."""

from voxfleet.config.jobs import TrainConfig
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.engine.console import say
from voxfleet.engine.output import as_document
from voxfleet.engine.training_job import train_package, training_outputs
from voxfleet.errors import UserError
from voxfleet.packages import CONFIG
from voxfleet.train.diffusion import DiffusionRecipe


def run(config: TrainConfig) -> None:
    """Train the network and package its averaged weights."""
    manifest = read_manifest(config.data, "latents")
    outputs = training_outputs("train", config, manifest)
    if outputs.package.is_done(CONFIG):
        return
    _check_model(config, manifest)
    for warning in config.warnings:
        say(f"train: warning: {warning}")
    train_package(
        outputs,
        config,
        kind="model",
        manifest=manifest,
        columns=("mu", "logvar"),
        recipe=DiffusionRecipe(
            config.model,
            config.diffusion,
            tuple(manifest.mean),
            tuple(manifest.std),
            gradient_checkpointing=config.gradient_checkpointing,
        ),
        weights=dict,
        document={
            "diffusion": as_document(config.diffusion),
            "mean": manifest.mean,
            "std": manifest.std,
            "geometry": manifest.geometry,
            "classes": list(manifest.classes),
            "limits": manifest.limits,
            "autoencoder": manifest.autoencoder,
        },
    )


def _check_model(config: TrainConfig, manifest: Manifest) -> None:
    expected = {
        "model.in_channels": (config.model.in_channels, manifest.shape[0]),
        "model.input_size": (config.model.input_size, manifest.shape[1:]),
        "model.num_classes": (config.model.num_classes, len(manifest.classes)),
    }
    for key, (ours, theirs) in expected.items():
        if ours != theirs:
            raise UserError(f"{key} is {ours}, but the latents in {config.data} have {theirs}; set {key} to {theirs}")
