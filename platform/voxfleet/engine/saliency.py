"""Where the classifier looks, in real and in synthetic volumes: mean maps of each class, and their share in hippocampi.

D/H/W voxels.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import ray
import torch

from voxfleet.config.evaluation import REAL
from voxfleet.data.sets import VolumeSet
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.comparison import Figure
from voxfleet.engine.measures import Measured, Measuring
from voxfleet.metrics.statistics import Interval, bootstrap
from voxfleet.models.saliency import WAYS, Saliency
from voxfleet.packages import load_classifier, load_segmenter
from voxfleet.report.page import Picture
from voxfleet.report.saliency import overlays

_AT_ONCE = 4  # volumes of a task
_JUDGED = 5  # volumes: the bootstrap of fewer is no interval


@dataclass(frozen=True)
class Looked:
    """What was found in the volumes of one class of a set.

    Attributes:
        n: number of volumes.
        anatomy: sum of the volumes, (D, H, W).
        hippocampi: sum of the shares of each voxel that they fill, (D, H, W), where there is a segmenter.
        maps: sum of the maps, by way, (D, H, W) each.
        inside: of each volume, by way, how much more of its saliency lies in the hippocampi than an even spread over
            its brain would put there.
    """

    n: int
    anatomy: np.ndarray
    hippocampi: np.ndarray | None
    maps: dict[str, np.ndarray]
    inside: dict[str, list[float]] = field(default_factory=dict)

    def merge(self, other: "Looked") -> "Looked":
        """Both together."""
        return Looked(
            n=self.n + other.n,
            anatomy=self.anatomy + other.anatomy,
            hippocampi=self.hippocampi + other.hippocampi
            if self.hippocampi is not None and other.hippocampi is not None
            else None,
            maps={way: values + other.maps[way] for way, values in self.maps.items()},
            inside={way: values + other.inside[way] for way, values in self.inside.items()},
        )


Views = Mapping[str, Mapping[str, Looked]]  # by set, by class


def look(measuring: Measuring, sets: Mapping[str, Measured], most: int, gpus: float) -> dict[str, dict[str, Looked]]:
    """What the classifier sees in ``most`` volumes of each class and set at most, side by side on the cluster.

    Of the real ones those that it was not trained on come first.
    """
    if not (measuring.classifier and most):
        return {}
    task = _look.options(num_cpus=measuring.threads, num_gpus=gpus)
    asked = {
        (name, class_name): [
            task.remote(measuring, measured.volumes, rows)
            for rows in np.array_split(chosen, -(-len(chosen) // _AT_ONCE))
        ]
        for name, measured in sets.items()
        for label, class_name in enumerate(measured.volumes.classes)
        if len(chosen := _chosen(measured, label, most))
    }
    found: dict[str, dict[str, Looked]] = {name: {} for name in sets}
    with ray_errors():
        for (name, class_name), refs in asked.items():
            found[name][class_name] = functools.reduce(Looked.merge, ray.get(refs))
    return found


def _chosen(measured: Measured, label: int, most: int) -> np.ndarray:
    rows = np.flatnonzero((measured.volumes.labels == label) & measured.usable)
    seen = np.isin(measured.volumes.splits[rows], ("train", "val"))
    return rows[np.argsort(seen, kind="stable")][:most]


@ray.remote
def _look(measuring: Measuring, volumes: VolumeSet, rows: np.ndarray) -> Looked:
    torch.set_num_threads(measuring.threads)
    assert measuring.classifier
    classifier = load_classifier(measuring.classifier, measuring.device)
    saliency = Saliency(classifier.model)
    read = np.stack(volumes.read(rows)[0])
    batch = torch.from_numpy(read).to(measuring.device)
    seen = classifier.looked_at(batch[:, None])[:, 0]
    shares = None
    if measuring.segmenter:
        shares = load_segmenter(measuring.segmenter, measuring.device).shares(batch[:, None]).sum(dim=1).cpu().numpy()
    labels = [classifier.classes.index(volumes.classes[label]) for label in volumes.labels[rows]]
    every = [saliency(seen[i], labels[i], seed=int(row)) for i, row in enumerate(rows)]
    maps = {way: np.zeros_like(read) for way in WAYS}  # nothing speaks where it does not look
    for way, values in maps.items():
        values[(slice(None), *classifier.region)] = np.stack([found[way].cpu().numpy() for found in every])
    return Looked(
        n=len(rows),
        anatomy=read.sum(axis=0),
        hippocampi=None if shares is None else shares.sum(axis=0),
        maps={way: values.sum(axis=0) for way, values in maps.items()},
        inside={} if shares is None else {way: _over_even(values, shares, read) for way, values in maps.items()},
    )


def _over_even(maps: np.ndarray, shares: np.ndarray, volumes: np.ndarray) -> list[float]:
    """For each of n volumes, the saliency in the hippocampi over what an even spread over the brain would put there."""
    brain = volumes > 0
    even = (shares * brain).sum(axis=(1, 2, 3)) / np.maximum(brain.sum(axis=(1, 2, 3)), 1)
    inside = (maps * shares).sum(axis=(1, 2, 3)) / np.maximum((maps * brain).sum(axis=(1, 2, 3)), 1e-12)
    return (inside / np.maximum(even, 1e-12)).tolist()


def saliency_figures(views: Views, name: str, *, repeats: int, seed: int) -> list[Figure]:
    """How the set ``name`` compares with the real one: likeness of the mean maps, and their share in the hippocampi."""
    figures = []
    for class_name, made in views.get(name, {}).items():
        real = views[REAL].get(class_name)
        if real is None:
            continue
        for way in WAYS:
            key = f"saliency/{way.replace(' ', '_').lower()}/{class_name}"
            likeness = float(np.corrcoef(made.maps[way].ravel(), real.maps[way].ravel())[0, 1])
            figure = Figure(key=key, name=f"{way}, {class_name}: correlation of the mean maps with real ones")
            if np.isfinite(likeness):
                found = Interval(likeness, likeness, likeness, made.n)
                figures.append(dataclasses.replace(figure, found=found))
            else:
                figures.append(dataclasses.replace(figure, reason="a map is empty"))
            if made.inside and real.inside:
                figures.append(_inside(f"{key}/hippocampi", way, class_name, made, real, repeats, seed))
    return figures


def _inside(key: str, way: str, class_name: str, made: Looked, real: Looked, repeats: int, seed: int) -> Figure:
    name = f"{way}, {class_name}: saliency in the hippocampi over that of an even spread"
    found, floor = (_mean(values, repeats, seed) for values in (made.inside[way], real.inside[way]))
    if min(found.n, floor.n) < _JUDGED:
        return Figure(key=key, name=name, found=found, floor=floor)
    passed = found.low <= floor.high and found.high >= floor.low
    return Figure(key=key, name=name, found=found, floor=floor, wanted="as in real volumes", passed=passed)


def _mean(values: list[float], repeats: int, seed: int) -> Interval:
    array = np.array(values)
    return bootstrap(lambda times: times @ array / times.sum(), np.arange(len(array)), repeats=repeats, seed=seed)


def saliency_pictures(views: Views) -> dict[str, list[Picture]]:
    """A section with one picture: mean maps of each set and class over its mean anatomy."""
    looked = {f"{name}, {class_name}": one for name, classes in views.items() for class_name, one in classes.items()}
    if not looked:
        return {}
    rows = {
        f"{title} ({one.n})": (one.anatomy / one.n, {way: values / one.n for way, values in one.maps.items()})
        for title, one in looked.items()
    }
    shares = [one.hippocampi / one.n for one in looked.values() if one.hippocampi is not None]
    outlined = " The hippocampi are outlined." if shares else ""
    caption = f"what speaks for their class in volumes of each class: mean maps over the mean anatomy.{outlined}"
    return {"Saliency": [Picture(overlays(rows, np.mean(shares, axis=0) if shares else None), caption)]}
