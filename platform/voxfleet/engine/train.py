"""The train job: latent shards to a DiT3D model package."""

from voxfleet import __version__, storage
from voxfleet.config.jobs import TrainConfig
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.engine.console import say
from voxfleet.engine.ingest import read_kept
from voxfleet.engine.job import is_done, job_session
from voxfleet.engine.output import as_document, claim_output, content
from voxfleet.engine.training import fit
from voxfleet.errors import UserError
from voxfleet.packages import CONFIG, architecture, write_package
from voxfleet.train.diffusion import DiffusionRecipe


def run(config: TrainConfig) -> None:
    """Train the network and package its averaged weights."""
    run_folder, package = storage.join(config.output, config.name), config.package_folder
    if is_done("train", package, CONFIG, config):
        return
    manifest = read_manifest(config.data, "latents")
    _check_model(config, manifest)
    if config.warning:
        say(f"train: warning: {config.warning}")
    recipe = DiffusionRecipe(config.model, config.diffusion, tuple(manifest.mean), tuple(manifest.std))
    claim_output(package, "train", config)
    with job_session("train", run_folder, config, config.name) as tracker:
        state = fit(
            recipe,
            read_kept(config.data, manifest, ("mu", "logvar")),
            folder=config.output,
            name=config.name,
            trainer=config.trainer,
            optim=config.optim,
            resources=config.resources,
            tracker=tracker,
        )
        storage.write_json(storage.join(run_folder, "history.json"), state["history"])
        mark = write_package(
            package,
            "model",
            state["ema"],
            {
                "architecture": architecture(config.model),
                "diffusion": as_document(config.diffusion),
                "mean": manifest.mean,
                "std": manifest.std,
                "geometry": manifest.geometry,
                "classes": list(manifest.classes),
                "limits": manifest.limits,
                "autoencoder": manifest.autoencoder,
                "training": {"voxfleet": __version__, "step": state["step"], **content(config)},
            },
        )
        tracker.log_params({"package": package, "fingerprint": mark})


def _check_model(config: TrainConfig, manifest: Manifest) -> None:
    expected = {
        "model.in_channels": (config.model.in_channels, manifest.shape[0]),
        "model.input_size": (config.model.input_size, manifest.shape[1:]),
        "model.num_classes": (config.model.num_classes, len(manifest.classes)),
    }
    for key, (ours, theirs) in expected.items():
        if ours != theirs:
            raise UserError(f"{key} is {ours}, but the latents in {config.data} have {theirs}; set {key} to {theirs}")
