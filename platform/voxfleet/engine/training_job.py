"""What train and train-vae share: from shards, through a fit, to a package."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from voxfleet import __version__, storage
from voxfleet.config.jobs import TrainConfig, TrainVaeConfig
from voxfleet.data.shards import Manifest
from voxfleet.engine.ingest import read_kept
from voxfleet.engine.job import job_session
from voxfleet.engine.output import check_output, claim_output, content
from voxfleet.engine.training import fit
from voxfleet.packages import architecture, write_package
from voxfleet.train.step import Recipe

HISTORY = "history.json"


def train_package(
    job: str,
    config: TrainConfig | TrainVaeConfig,
    *,
    kind: str,
    manifest: Manifest,
    columns: tuple[str, ...],
    recipe: Recipe,
    weights: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    document: dict[str, Any],
) -> None:
    """Fit ``recipe`` to ``columns`` of the shards, and package its averaged weights, as ``weights`` names them.

    ``document`` is what the package's configuration holds beside the architecture and the training's provenance.
    """
    run_folder = storage.join(config.output, config.name)
    check_output(run_folder, job, config)
    claim_output(config.package_folder, job, config)
    with job_session(job, run_folder, config, config.name) as tracker:
        state = fit(
            recipe,
            read_kept(config.data, manifest, columns),
            folder=config.output,
            name=config.name,
            trainer=config.trainer,
            optim=config.optim,
            resources=config.resources,
            tracker=tracker,
        )
        storage.write_json(storage.join(run_folder, HISTORY), state["history"])
        provenance = {"voxfleet": __version__, "step": state["step"], **content(config)}
        fingerprint = write_package(
            config.package_folder,
            kind,
            weights(state["ema"]),
            {"architecture": architecture(config.model), **document, "training": provenance},
        )
        tracker.log_params({"package": config.package_folder, "fingerprint": fingerprint})
