"""The train-segmenter job: a segmenter of the hippocampi, from label maps of the real volumes.

n volumes, D/H/W voxels.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from voxfleet import __version__, storage
from voxfleet.config.segmentation import TrainSegmenterConfig
from voxfleet.data import nifti
from voxfleet.data.label_maps import filled, find_label_maps, label_map_digests
from voxfleet.data.sets import VolumeSet, open_set
from voxfleet.data.shards import Manifest, read_manifest, read_shard, tensors
from voxfleet.engine.cluster import gpus_per_worker, ray_errors
from voxfleet.engine.console import say
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import Output, as_document, digest
from voxfleet.errors import UserError
from voxfleet.metrics.statistics import effect_size
from voxfleet.models.segmenter import STRUCTURES
from voxfleet.packages import architecture, load_segmenter, write_package
from voxfleet.report.segmentation import contours
from voxfleet.train.segmenter import LabelledVolumes, segmented, train_segmenter

PACKAGE, HISTORY, FIGURES, PICTURE = "package", "history.json", "figures.json", "segmentation.png"
_SHOWN = 6


def run(config: TrainSegmenterConfig) -> None:
    """Read volumes and label maps, train, and test on people who were held out."""
    alone = dataclasses.replace(config.resources, workers=1, min_workers=None)
    config = absolute_paths(dataclasses.replace(config, resources=alone), "output", "volumes", "labels")
    manifest = read_manifest(config.volumes, "volumes")
    volumes = open_set(config.volumes)
    maps = _label_maps(config, volumes)
    inputs = {"volumes": volumes.digest, "labels": digest(label_map_digests(maps))}
    output = Output("train-segmenter", config.output, config, inputs)
    if output.is_done(FIGURES):
        return
    with job_session(output, workers=True) as tracker:
        say(f"train-segmenter: {len(maps)} label maps")
        parts = [_labelled.remote(file, maps, config.label_values.values) for file in manifest.files(config.volumes)]
        cpus, gpus = config.resources.cpus_per_worker, gpus_per_worker(config.resources)
        train = _train.options(num_cpus=cpus, num_gpus=gpus)
        with ray_errors():
            figures = ray.get(train.remote(config, manifest, "cuda" if gpus else "cpu", *parts))
        uri = {name: storage.join(config.output, name) for name in (HISTORY, PICTURE, PACKAGE, FIGURES)}
        tracker.log_metrics(storage.read_json(uri[HISTORY]))
        tracker.log_metrics([{key: value for key, value in figures.items() if isinstance(value, float)}])
        tracker.log_artifact(uri[PICTURE])
        tracker.register_package(uri[PACKAGE], figures["fingerprint"], "final")
        storage.write_json(uri[FIGURES], figures)
        say(
            f"train-segmenter: on {figures['n']} people held out, Dice {figures['dice']:.3f}, correlation with the "
            f"true volumes {figures['correlation']:.3f}; package in {uri[PACKAGE]}"
        )


def _label_maps(config: TrainSegmenterConfig, volumes: VolumeSet) -> dict[str, str]:
    """The label map of each subject.

    Raises:
        UserError: if there are not enough, or a subject has several images, whose map it could be.
    """
    names, counts = np.unique(volumes.subjects, return_counts=True)
    if (counts > 1).any():
        raise UserError(
            f"{config.volumes} has {counts.max()} images of {names[counts.argmax()]}, and label maps are found by "
            "subject; prepare volumes with --source.images first"
        )
    maps = find_label_maps(config.labels, volumes.subjects)
    for split in ("train", "val", "test"):
        there = sum(subject in maps for subject in volumes.subjects[volumes.splits == split])
        if there < 2:
            raise UserError(f"{config.labels} has label maps of {there} subjects of split {split}; it takes two")
    return maps


@dataclass(frozen=True)
class _Labelled:
    """Volumes of some subjects, in memory."""

    subjects: list[str]
    splits: np.ndarray
    labels: np.ndarray
    samples: LabelledVolumes


@ray.remote
def _labelled(file: str, maps: dict[str, str], values: tuple[int, ...]) -> _Labelled | None:
    """The volumes of a shard whose subjects have a label map, with these on their grid."""
    table = read_shard(file)
    every = table.select(["subject_id", "split", "label", "affine"]).to_pylist()
    chosen = [place for place, row in enumerate(every) if row["subject_id"] in maps]
    if not chosen:
        return None
    rows, volumes = [every[place] for place in chosen], tensors(table, "volume")[chosen]
    shares = [_shares(maps[row["subject_id"]], values, row["affine"], volumes.shape[1:]) for row in rows]
    return _Labelled(
        subjects=[row["subject_id"] for row in rows],
        splits=np.array([row["split"] for row in rows]),
        labels=np.array([row["label"] for row in rows]),
        samples=LabelledVolumes.of(volumes, np.stack(shares)),
    )


def _shares(uri: str, values: tuple[int, ...], affine: list[float], shape: tuple[int, ...]) -> np.ndarray:
    try:
        shares = filled(nifti.read(uri), values, np.reshape(affine, (4, 4)), shape)
    except UserError as error:
        raise error if uri in str(error) else UserError(f"{uri}: {error}") from error
    for value, share in zip(values, shares, strict=True):
        if not share.any():
            raise UserError(f"{uri} has no label {value} within the volume; set label_values, or leave this map out")
    return shares


@ray.remote
def _train(config: TrainSegmenterConfig, manifest: Manifest, device: str, *parts: _Labelled | None) -> dict[str, Any]:
    """Train, write the package and a picture; the figures of the test split."""
    torch.set_num_threads(config.resources.cpus_per_worker)
    there = [part for part in parts if part]
    samples = LabelledVolumes(
        np.concatenate([part.samples.volumes for part in there]), np.concatenate([p.samples.shares for p in there])
    )
    splits, labels = (np.concatenate([getattr(part, name) for part in there]) for name in ("splits", "labels"))
    subjects = np.array([subject for part in there for subject in part.subjects])
    training, validation = (samples[np.flatnonzero(splits == name)] for name in ("train", "val"))
    model, fitted = train_segmenter(
        config.model, config.training, training, validation, seed=config.seed, device=device
    )
    held_out = np.flatnonzero(splits == "test")
    voxels, dice = segmented(model, samples[held_out], config.training.batch_size)
    figures = _figures(samples[held_out].voxels, voxels, dice, labels[held_out], manifest)
    document = {
        "architecture": architecture(config.model),
        "structures": list(STRUCTURES),
        "geometry": manifest.geometry,
        "test": figures,
        "training": {"voxfleet": __version__, "data": manifest.digest, "best": fitted.best, **as_document(config)},
    }
    folder = storage.join(config.output, PACKAGE)
    mark = write_package(folder, "segmenter", model.state_dict(), document)
    storage.write_json(storage.join(config.output, HISTORY), fitted.history)
    shown = held_out[:_SHOWN]
    storage.write_bytes(storage.join(config.output, PICTURE), _picture(folder, samples[shown], subjects[shown]))
    return {**figures, "fingerprint": mark}


def _picture(package: str, samples: LabelledVolumes, subjects: np.ndarray) -> bytes:
    volumes, shares = samples.tensors(torch.device("cpu"))
    found = load_segmenter(package).shares(volumes)
    true, predicted = (x.sum(dim=1).numpy() for x in (shares[:, 1:], found))
    return contours(volumes[:, 0].numpy(), true, predicted, subjects.tolist())


def _figures(
    true: np.ndarray, found: np.ndarray, dice: np.ndarray, labels: np.ndarray, manifest: Manifest
) -> dict[str, Any]:
    """How well structures are found: true and found volumes (n, 2) in voxels, Dice (n, 2), classes (n,)."""
    voxel_ml = float(np.prod(manifest.geometry["spacing_mm"])) / 1000
    lopsided = [2 * (x[:, 0] - x[:, 1]) / np.maximum(x.sum(axis=1), 1e-6) for x in (true, found)]
    figures = {
        "n": len(true),
        "dice": float(dice.mean()),
        "dice_lowest": float(dice.min()),
        "true_ml": float(true.mean() * voxel_ml),
        "found_ml": float(found.mean() * voxel_ml),
        "error_ml": float(np.abs(found - true).mean() * voxel_ml),
        "correlation": _correlation(true.ravel(), found.ravel()),
        "correlation_asymmetry": _correlation(*lopsided),
    }
    if len(manifest.classes) == 2 and min(np.bincount(labels, minlength=2)) > 1:
        for name, values in zip(("true", "found"), lopsided, strict=True):
            effect = effect_size(*(np.abs(values[labels == label]) for label in (1, 0)))
            figures[f"asymmetry_effect_{name}"] = effect.value
    return figures


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
