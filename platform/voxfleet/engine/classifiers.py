"""What the classify job trains: the volumes that are compared, and one training after another in an actor.

Each training (regime, fold, seed) is a unit of the ledger, whose rows are its predictions. n volumes, C classes.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from voxfleet import __version__, storage
from voxfleet.config.classification import ClassifyConfig
from voxfleet.data.folds import NO_FOLD, REAL, SYNTHETIC, TEST, Table, folds_of
from voxfleet.data.geometry import voxels_in
from voxfleet.data.sets import VolumeSet, open_set
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.output import as_document
from voxfleet.engine.units import Rows
from voxfleet.errors import UserError
from voxfleet.models.classifier import Classifier, ClassifierConfig
from voxfleet.packages import architecture, write_package
from voxfleet.train.classifier import Samples, predict, train_classifier
from voxfleet.train.fitting import Fitted

PACKAGE, HISTORY = "package", "history.json"
HELD_OUT = "fold"  # the part of the predictions that a classifier makes for the fold that it was trained without
_READ_AT_ONCE = 64  # volumes of one task


@dataclass(frozen=True)
class Unit:
    """One training: the ``seed``-th of a regime and fold."""

    regime: str
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Its name in the ledger."""
        return self.regime if self.fold == NO_FOLD else f"{self.regime}_fold-{self.fold}_seed-{self.seed}"


@dataclass(frozen=True)
class Study:
    """What is compared; ``config`` has full paths, ``region`` are the voxels that are looked at."""

    config: ClassifyConfig
    manifest: Manifest
    region: tuple[slice, ...]
    sets: tuple[VolumeSet, ...]
    table: Table

    @classmethod
    def open(cls, config: ClassifyConfig) -> "Study":
        """Look at the volumes that ``config`` names.

        Raises:
            UserError: if they cannot be compared as it asks.
        """
        manifest = read_manifest(config.real, "volumes")
        sets = tuple(open_set(folder) for folder in (config.real, config.synthetic) if folder)
        if config.positive is not None and config.positive not in manifest.classes:
            raise UserError(
                f"positive is {config.positive!r}; the classes of {config.real} are {', '.join(manifest.classes)}"
            )
        if config.training.augment.mirror and manifest.geometry.get("mirror_axis") is None:
            raise UserError(
                f"training.augment.mirror is true, but {config.real} does not say that a mirrored head is one of the "
                "same class; set it to false, or prepare the volumes with --source.mirrored true if it is"
            )
        region = _region(config, manifest)
        labels = np.concatenate([_labels(each, manifest.classes) for each in sets])
        subjects = np.concatenate([each.subjects for each in sets])
        real = len(sets[0])
        parts = np.concatenate([sets[0].splits, np.full(len(labels) - real, SYNTHETIC)])
        folds = np.full(len(labels), NO_FOLD)
        folds[:real] = folds_of(
            subjects[:real], labels[:real], parts[:real], config.folds, config.seed, manifest.classes
        )
        names = np.concatenate([each.names for each in sets])
        table = Table(manifest.classes, names, subjects, labels, parts, folds)
        if not len(table.of(TEST)):
            raise UserError(f"{config.real} has no subject in split test; make it again with another split")
        study = cls(config, manifest, region, sets, table)
        for unit in study.units().values():  # now, so that what cannot be drawn is found before anything is trained
            study.rows(unit)
        return study

    @property
    def digests(self) -> dict[str, str]:
        """Of the content of each set, by the key that names it."""
        return {key: each.digest for key, each in zip(("real", "synthetic"), self.sets, strict=False)}

    @property
    def positive(self) -> int:
        """The class that is looked for."""
        classes = self.table.classes
        return classes.index(self.config.positive) if self.config.positive else len(classes) - 1

    @property
    def model(self) -> ClassifierConfig:
        """The network, for these volumes and classes."""
        depth, height, width = (part.stop - part.start for part in self.region)
        return dataclasses.replace(
            self.config.model, input_size=(depth, height, width), num_classes=len(self.table.classes)
        )

    def units(self) -> dict[str, Unit]:
        """All trainings by name: those of the package, and of each regime, fold and seed."""
        c = self.config
        every = [
            Unit(regime.key, fold, seed) for seed in range(c.seeds) for fold in range(c.folds) for regime in c.regimes
        ]
        return {unit.name: unit for unit in (Unit(PACKAGE, NO_FOLD, 0), *every)}

    def rows(self, unit: Unit) -> tuple[np.ndarray, np.ndarray, int]:
        """The rows to train on, those that choose the best epoch, and the draws of an epoch."""
        if unit.regime == PACKAGE:
            train = self.table.of("train")
            return train, self.table.of("val"), len(train)
        regime = next(regime for regime in self.config.regimes if regime.key == unit.regime)
        return self.table.training(regime, unit.fold, (self.config.seed, unit.seed), self.config.training.validation)

    def read(self) -> np.ndarray:
        """The region of all volumes (n, D, H, W), in half precision: it keeps intensities in [0, 1] to .0005.

        Raises:
            UserError: if one cannot be read, is not finite, or not on the grid of the real ones.
        """
        tasks = [
            _read.remote(each, np.arange(start, min(start + _READ_AT_ONCE, len(each))), self.manifest, self.region)
            for each in self.sets
            for start in range(0, len(each), _READ_AT_ONCE)
        ]
        with ray_errors():
            return np.concatenate(ray.get(tasks))


def _labels(volumes: VolumeSet, classes: Sequence[str]) -> np.ndarray:
    """The labels of a set's volumes, in terms of ``classes``, each of which has some."""
    there = {volumes.classes[label] for label in np.unique(volumes.labels)}
    if unknown := sorted(there - set(classes)):
        raise UserError(
            f"{volumes.folder} has volumes of class {unknown[0]}, but the classes of the real ones are "
            f"{', '.join(classes)}; leave them out, or compare with real volumes of that class"
        )
    for name in classes:
        if name not in there:
            raise UserError(f"{volumes.folder} has no volume of class {name}; add some")
    return np.array([classes.index(name) for name in volumes.classes])[volumes.labels]


def _region(config: ClassifyConfig, manifest: Manifest) -> tuple[slice, ...]:
    if config.region_mm is None:
        return tuple(slice(0, edge) for edge in manifest.shape)
    try:
        return voxels_in(config.region_mm, manifest.geometry["affine"], manifest.shape)
    except ValueError as error:
        raise UserError(f"region_mm is {config.region_mm}: {error}") from error


@ray.remote
def _read(volumes: VolumeSet, rows: np.ndarray, manifest: Manifest, region: tuple[slice, ...]) -> np.ndarray:
    found, affines = volumes.read(rows)
    for name, volume, affine in zip(volumes.names[rows], found, affines, strict=True):
        what = f"{name} of {volumes.folder}"
        if volume.shape != manifest.shape:
            raise UserError(f"{what} has shape {volume.shape}, the real volumes {manifest.shape}; use sets of one grid")
        if not np.allclose(affine, manifest.geometry["affine"], atol=1e-3):
            raise UserError(f"{what} lies elsewhere than the real volumes (another affine); use sets of one grid")
        if not np.isfinite(volume).all():
            raise UserError(f"{what} has voxels that are not finite; leave it out, or make it again")
    return np.stack([volume[region] for volume in found]).astype(np.float16)


class Training:
    """An actor that trains classifiers, one after another."""

    def __init__(self, study: Study, volumes: "ray.ObjectRef[np.ndarray]", gpu: bool) -> None:
        torch.set_num_threads(study.config.resources.cpus_per_worker)
        self.study, self.device = study, "cuda" if gpu else "cpu"
        self.volumes = ray.get(volumes)  # shared by all actors of a node

    def __call__(self, name: str, content: dict[str, Any]) -> Rows:
        """Train the classifier of a unit, and predict what it never saw."""
        unit, began = Unit(**content), time.monotonic()
        config, table = self.study.config, self.study.table
        training, validation, draws = self.study.rows(unit)
        seed = np.random.SeedSequence((config.seed, unit.seed, unit.fold + 1)).generate_state(1)[0]
        model, fitted = train_classifier(
            self.study.model,
            config.training,
            self._samples(training),
            self._samples(validation),
            seed=int(seed),
            device=self.device,
            draws=draws,
        )
        if unit.regime == PACKAGE:
            self._write(model, fitted)
        facts = {"best_epoch": fitted.best["epoch"], "val_loss": fitted.best["val_loss"]}
        facts["seconds"] = time.monotonic() - began
        parts = {TEST: table.of(TEST), HELD_OUT: table.in_fold(unit.fold)}
        if unit.regime in (PACKAGE, REAL.key):
            parts[SYNTHETIC] = table.of(SYNTHETIC)
        return [
            {"part": part, "row": row, "probabilities": probabilities, **facts}
            for part, rows in parts.items()
            for row, probabilities in zip(rows.tolist(), self._predict(model, rows), strict=True)
        ]

    def _samples(self, rows: np.ndarray) -> Samples:
        return Samples(self.volumes.__getitem__, rows, self.study.table.labels[rows])

    def _predict(self, model: Classifier, rows: np.ndarray) -> list[list[float]]:
        size = self.study.config.training.batch_size
        return predict(model, self._samples(rows), batch_size=size).tolist()

    def _write(self, model: Classifier, fitted: Fitted) -> None:
        config, manifest = self.study.config, self.study.manifest
        document = {
            "architecture": architecture(self.study.model),
            "classes": list(manifest.classes),
            "shape": list(manifest.shape),
            "region": [[part.start, part.stop] for part in self.study.region],
            "geometry": manifest.geometry,
            "training": {"voxfleet": __version__, "data": manifest.digest, "best": fitted.best, **as_document(config)},
        }
        storage.write_json(storage.join(config.output, HISTORY), fitted.history)
        write_package(storage.join(config.output, PACKAGE), "classifier", model.state_dict(), document)
