"""What train and train-vae share: from shards, through a fit, to a package."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from voxfleet import __version__, storage
from voxfleet.config.jobs import TrainConfig, TrainVaeConfig
from voxfleet.data.shards import Manifest, check_shards
from voxfleet.engine.ingest import read_kept
from voxfleet.engine.job import job_session
from voxfleet.engine.output import Output, as_document
from voxfleet.engine.training import fit
from voxfleet.packages import architecture, write_package
from voxfleet.train.step import Recipe

HISTORY = "history.json"


@dataclass(frozen=True)
class TrainingOutputs:
    """The folder of the run, and that of the package, which may lie in it."""

    run: Output
    package: Output


def training_outputs(job: str, config: TrainConfig | TrainVaeConfig, manifest: Manifest) -> TrainingOutputs:
    """The outputs of a training on the shards of ``manifest``."""
    inputs = {"data": manifest.digest}
    run = Output(job, storage.join(config.output, config.name), config, inputs)
    return TrainingOutputs(run, Output(job, config.package_folder, config, inputs, run=run.folder))


def train_package(
    outputs: TrainingOutputs,
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
    check_shards(config.data, manifest)
    with job_session(outputs.run, workers=True, name=config.name) as tracker:
        outputs.package.claim()
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
        storage.write_json(storage.join(outputs.run.folder, HISTORY), state["history"])
        provenance = {"voxfleet": __version__, "step": state["step"], **as_document(config)}
        fingerprint = write_package(
            config.package_folder,
            kind,
            weights(state["ema"]),
            {"architecture": architecture(config.model), **document, "training": provenance},
        )
        tracker.log_params({"package_folder": config.package_folder, "fingerprint": fingerprint})
