"""What train and train-vae share: from shards, through a fit, to a package."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from voxfleet import __version__, storage
from voxfleet.config.jobs import TrainConfig, TrainVaeConfig
from voxfleet.data.index import check_trainable, read_index
from voxfleet.data.shards import Manifest
from voxfleet.engine.console import say
from voxfleet.engine.ingest import describe, open_splits
from voxfleet.engine.job import job_session
from voxfleet.engine.output import Output, as_document
from voxfleet.engine.training import fit
from voxfleet.packages import CONFIG, architecture, write_package
from voxfleet.train.step import Recipe

HISTORY, BEST = "history.json", "best"


@dataclass(frozen=True)
class TrainingOutputs:
    """The folder of the run, and that of the package, which may lie in it."""

    run: Output
    package: Output

    def are_done(self) -> bool:
        """Whether an earlier run made the package and recorded all; says so.

        Raises:
            UserError: as ``Output.check``.
        """
        self.package.check()
        return storage.exists(storage.join(self.run.folder, HISTORY)) and self.package.is_done(CONFIG)


def training_outputs(
    job: str, config: TrainConfig | TrainVaeConfig, manifest: Manifest, digests: Mapping[str, str] | None = None
) -> TrainingOutputs:
    """The outputs of a training on the shards of ``manifest`` and on files with ``digests``."""
    inputs = {"data": manifest.digest, **(digests or {})}
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
    **options: Any,
) -> None:
    """Fit ``recipe`` to ``columns`` of the shards, and package its averaged weights, as ``weights`` names them.

    Those of the end go into the package, those of the lowest validation loss into the run's folder. ``document`` is
    what a package's configuration holds beside the architecture and the training's provenance; ``options`` are of fit.
    """
    splits = read_index(storage.absolute(config.data), manifest, columns)
    check_trainable(config.data, manifest, splits)
    with job_session(outputs.run, workers=True, name=config.name) as tracker:
        data = open_splits(splits, columns, config.loading.mode)
        say(f"{config.name}: {describe(data)}")
        tracker.log_dataset("train", config.data, manifest.digest, {"counts": manifest.counts, "shape": manifest.shape})
        tracker.log_document("manifest.json", dataclasses.asdict(manifest))
        outputs.package.claim()
        trained = fit(
            recipe,
            data,
            folder=storage.absolute(config.output),
            name=config.name,
            trainer=config.trainer,
            optim=config.optim,
            resources=config.resources,
            tracker=tracker,
            balanced=config.loading.balanced,
            **options,
        )
        best = storage.join(outputs.run.folder, BEST)
        for alias, folder, state in (("best", best, trained.best), ("final", config.package_folder, trained.state)):
            provenance = {"voxfleet": __version__, "step": state["step"], **as_document(config)}
            fingerprint = write_package(
                folder,
                kind,
                weights(state["ema"]),
                {"architecture": architecture(config.model), **document, "training": provenance},
            )
            tracker.register_package(folder, fingerprint, alias)
        tracker.log_params({"package_folder": config.package_folder, "fingerprint": fingerprint})
    # last: a run that is killed while it is being recorded is not done
    storage.write_json(storage.join(outputs.run.folder, HISTORY), trained.history)
