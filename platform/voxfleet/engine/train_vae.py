"""The train-vae job: volume shards to an autoencoder package."""

from voxfleet import __version__, storage
from voxfleet.config.jobs import TrainVaeConfig
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.engine.ingest import read_kept
from voxfleet.engine.job import is_done, job_session
from voxfleet.engine.output import claim_output, content
from voxfleet.engine.training import fit
from voxfleet.errors import UserError
from voxfleet.packages import CONFIG, architecture, write_package
from voxfleet.train.autoencoder import AutoencoderRecipe, autoencoder_weights


def run(config: TrainVaeConfig) -> None:
    """Train the autoencoder and package its averaged weights."""
    run_folder, package = storage.join(config.output, config.name), config.package_folder
    if is_done("train-vae", package, CONFIG, config):
        return
    manifest = read_manifest(config.data, "volumes")
    _check_shape(config, manifest)
    claim_output(package, "train-vae", config)
    with job_session("train-vae", run_folder, config, config.name) as tracker:
        state = fit(
            AutoencoderRecipe(config.model, config.loss),
            read_kept(config.data, manifest, ("volume",)),
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
            "autoencoder",
            autoencoder_weights(state["ema"]),
            {
                "architecture": architecture(config.model),
                "shape": list(manifest.shape),
                "geometry": manifest.geometry,
                "training": {"voxfleet": __version__, "step": state["step"], **content(config)},
            },
        )
        tracker.log_params({"package": package, "fingerprint": mark})


def _check_shape(config: TrainVaeConfig, manifest: Manifest) -> None:
    try:
        config.model.latent_shape(manifest.shape)
    except ValueError as error:
        raise UserError(f"the volumes in {config.data} do not fit the autoencoder: {error}") from error
