"""The release gate: may a synthetic set be given away? It must be whole, in its place, and copy nobody."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray

from voxfleet.config.evaluation import ReleaseConfig
from voxfleet.data.sets import VolumeSet
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.comparison import Figure, attempted
from voxfleet.engine.measures import AUTOENCODER, Measured
from voxfleet.metrics import privacy
from voxfleet.metrics.neighbours import aligned_distances, distances, nearest, neighbours, thumbnails
from voxfleet.metrics.statistics import Interval, wilson

LATENTS, FEATURES, VOXELS = "latents", "features", "voxels"
_CANDIDATES = 3
_AT_ONCE = 8  # volumes of a task
_PLACE = 0.1  # of a voxel


@dataclass(frozen=True)
class Neighbourhood:
    """Distances of the synthetic and the held-out volumes to the nearest training volume, in one space.

    Where mirror images were measured, the distance to a real volume is the smaller of those to it and its mirror image.

    Attributes:
        space: its name.
        synthetic, held_out: distances.
        synthetic_nearest, held_out_nearest: rows of the training volumes.
        from_training, from_held_out: distances of real volumes to the nearest synthetic one.
        among_synthetic, among_real: distances to the nearest other of the same set, both of one size.
        to_training, to_held_out: distances of each synthetic volume to each real one, where they stand.
    """

    space: str
    synthetic: np.ndarray
    synthetic_nearest: np.ndarray
    held_out: np.ndarray
    held_out_nearest: np.ndarray
    from_training: np.ndarray
    from_held_out: np.ndarray
    among_synthetic: np.ndarray
    among_real: np.ndarray
    to_training: np.ndarray
    to_held_out: np.ndarray


@dataclass(frozen=True)
class People:
    """Rows of the real set, one a subject: those that were trained on, and those held out."""

    training: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, real: Measured) -> "People":
        """Of the volumes that can be compared, the first of each subject."""
        usable = np.flatnonzero(real.usable)
        first = usable[np.unique(real.volumes.subjects[usable], return_index=True)[1]]
        is_training = real.volumes.splits[first] == "train"
        return cls(first[is_training], first[~is_training])


@dataclass(frozen=True)
class _Side:
    """Some volumes of a set."""

    measured: Measured
    rows: np.ndarray

    def first(self, number: int) -> "_Side":
        """So many of them."""
        return _Side(self.measured, self.rows[:number])

    def values(self, space: str) -> np.ndarray:
        """(n, values), as a row each; features of slices are the means over each plane."""
        if space == VOXELS:
            return self.measured.small[self.rows].reshape(len(self.rows), -1)
        names = [AUTOENCODER] if space == LATENTS else _of_slices(self.measured)
        return np.concatenate([self.measured.features[name][self.rows].mean(axis=1) for name in names], axis=1)

    @property
    def thumbnails(self) -> np.ndarray:
        """(n, values), by which candidates are found."""
        return thumbnails(self.measured.small[self.rows])


def spaces(measured: Measured) -> tuple[str, ...]:
    """In which volumes are near or far: the last one shows pairs best."""
    return (LATENTS, *([FEATURES] if _of_slices(measured) else []), VOXELS)


def _of_slices(measured: Measured) -> list[str]:
    """Names of the features of slices, by the first network, in all planes."""
    names = [name for name in measured.features if ", " in name]
    return [name for name in names if name.partition(", ")[0] == names[0].partition(", ")[0]]


def neighbourhood(
    space: str, real: Measured, synthetic: Measured, people: People, mirrored: Measured | None = None
) -> Neighbourhood:
    """The distances by which the gate judges: of latents, or of voxels, however they are shifted.

    Args:
        space: one of ``spaces``.
        real: the real set.
        synthetic: the set that is judged.
        people: rows of the real set.
        mirrored: the mirror images of the real set, where a model may have been trained on them.

    Raises:
        ValueError: if there are too few volumes.
    """
    find = _nearest_shifted if space == VOXELS else functools.partial(_nearest_values, space)
    sources = [real] if mirrored is None else [real, mirrored]
    training, held_out = ([_Side(source, rows) for source in sources] for rows in (people.training, people.held_out))
    made = _Side(synthetic, np.flatnonzero(synthetic.usable))
    size = min(len(made.rows), len(people.training))
    return Neighbourhood(
        space,
        *_choose_nearest([find(made, side) for side in training]),
        *_choose_nearest([find(held_out[0], side) for side in training]),
        _choose_nearest([find(side, made) for side in training])[0],
        _choose_nearest([find(side, made) for side in held_out])[0],
        find(made.first(size), None)[0],
        find(training[0].first(size), None)[0],
        *(
            np.min([distances(made.values(space), side.values(space)) for side in sides], axis=0)
            for sides in (training, held_out)
        ),
    )


def _choose_nearest(candidates: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Choose for each volume the smallest of several distances, (n,), and the row that belongs to it, (n,)."""
    apart, rows = (np.stack(each) for each in zip(*candidates, strict=True))
    best = apart.argmin(axis=0), np.arange(apart.shape[1])
    return apart[best], rows[best]


def _nearest_values(space: str, x: _Side, y: _Side | None) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each volume of ``x`` to the nearest of ``y``, or to the nearest other one, and which that is."""
    return nearest(x.values(space), y.values(space) if y else None)


def _nearest_shifted(x: _Side, y: _Side | None) -> tuple[np.ndarray, np.ndarray]:
    """Likewise, over shifts, among those whose thumbnails are near."""
    others = y or x
    count = min(_CANDIDATES, len(others.rows) - (y is None))
    found = neighbours(x.thumbnails, y.thumbnails if y else None, count=count)[1]
    sets = [ray.put(side.measured.volumes) for side in (x, others)]
    parts = [
        _aligned.remote(*sets, x.rows[start : start + _AT_ONCE], others.rows[found[start : start + _AT_ONCE]])
        for start in range(0, len(found), _AT_ONCE)
    ]
    with ray_errors():
        apart = np.concatenate(ray.get(parts))
    best = apart.argmin(axis=1)
    return apart[np.arange(len(found)), best], found[np.arange(len(found)), best]


@ray.remote(num_cpus=1)
def _aligned(volumes: VolumeSet, others: VolumeSet, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Distances of the volumes in ``rows`` (n,) to their ``candidates`` (n, k) among the others."""
    wanted, place = np.unique(candidates, return_inverse=True)
    read = others.read(wanted)[0]
    each = zip(volumes.read(rows)[0], place.reshape(candidates.shape), strict=True)
    return np.array([aligned_distances(volume, np.stack([read[i] for i in chosen])) for volume, chosen in each])


def whole_figures(synthetic: Measured, spacing_mm: float) -> Iterator[Figure]:
    """Whether every volume is finite, shows a brain, and lies where the real ones do."""
    finite, usable = synthetic.scalars["finite"] == 1, synthetic.usable
    n = len(synthetic)
    for key, name, good in (
        ("finite", "volumes that are finite", finite),
        ("brain", "volumes in which a brain is found", usable),
    ):
        share = wilson(int(good.sum()), n)
        yield Figure(key=key, name=name, found=share, wanted="all", passed=bool(good.all()))
    farthest = float(synthetic.scalars["offset_mm"].max())
    yield Figure(
        key="place",
        name="farthest that a corner lies from where that of the real volumes does, mm",
        found=Interval(farthest, farthest, farthest, n),
        wanted=f"below {_PLACE * spacing_mm:.2g}",
        passed=farthest < _PLACE * spacing_mm,
    )


def privacy_figures(near: Neighbourhood, subjects: np.ndarray, config: ReleaseConfig) -> Iterator[Figure]:
    """Whether somebody was copied, by the distances of one space.

    Args:
        near: the distances.
        subjects: of the training volumes.
        config: what is allowed.
    """
    for key, (name, judge) in _JUDGES.items():
        title = f"{name} ({near.space})"
        yield attempted(
            f"{key}/{near.space}", title, functools.partial(judge, f"{key}/{near.space}", title, near, subjects, config)
        )


def _copies(key: str, name: str, near: Neighbourhood, _: np.ndarray, config: ReleaseConfig) -> Figure:
    copied = privacy.copies(near.synthetic, near.held_out, config.copy_factor)
    share = wilson(int(copied.sum()), len(copied))
    return Figure(key=key, name=name, found=share, wanted="none", passed=not copied.any())


def _duplicates(key: str, name: str, near: Neighbourhood, _: np.ndarray, config: ReleaseConfig) -> Figure:
    twice = privacy.copies(near.among_synthetic, near.among_real, config.copy_factor)
    share = wilson(int(twice.sum()), len(twice))
    return Figure(key=key, name=name, found=share, wanted="none", passed=not twice.any())


def _near(key: str, name: str, near: Neighbourhood, _: np.ndarray, __: ReleaseConfig) -> Figure:
    found = privacy.nearness(near.synthetic, near.held_out)
    floor = Interval(found.expected, found.expected, found.expected, len(near.held_out))
    # nothing is asked for: blurred volumes are nearer to everybody
    return Figure(key=key, name=name, found=found.share, floor=floor, wanted=f"(by chance with p {found.p_value:.2g})")


def _ratio(key: str, name: str, near: Neighbourhood, _: np.ndarray, __: ReleaseConfig) -> Figure:
    found = privacy.distance_ratio(near.synthetic, near.held_out)
    return Figure(key=key, name=name, found=found, floor=Interval(1, 1, 1, len(near.held_out)))


def _preference(key: str, name: str, near: Neighbourhood, _: np.ndarray, config: ReleaseConfig) -> Figure:
    found = privacy.preference(near.to_training, near.to_held_out)
    return Figure(
        key=key,
        name=name,
        found=Interval(found.share, found.share, found.share, len(near.synthetic)),
        floor=Interval(0.5, 0.5, 0.5, len(near.held_out)),
        wanted=f"no more than by chance: p {found.p_value:.2g}, at least {config.alpha:.2g}",
        passed=found.p_value >= config.alpha,
    )


def _covered(key: str, name: str, near: Neighbourhood, subjects: np.ndarray, config: ReleaseConfig) -> Figure:
    found = privacy.coverage_of_subjects(subjects[near.synthetic_nearest], subjects[near.held_out_nearest])
    return Figure(
        key=key,
        name=name,
        found=Interval(found.synthetic, found.synthetic, found.synthetic, found.draws),
        floor=Interval(found.real, found.real, found.real, found.draws),
        wanted=f"no fewer than by chance: p {found.p_value:.2g}, at least {config.alpha:.2g}",
        passed=found.p_value >= config.alpha,
    )


def _membership(key: str, name: str, near: Neighbourhood, _: np.ndarray, config: ReleaseConfig) -> Figure:
    found = privacy.membership(near.from_training, near.from_held_out)
    floor = Interval(0.5, 0.5, 0.5, found.n)
    return Figure(key=key, name=name, found=found, floor=floor, wanted="interval reaches 0.5", passed=found.low <= 0.5)


_JUDGES = {
    "copies": ("copies of training volumes, much nearer than any new person", _copies),
    "duplicates": ("duplicates within the set, much nearer than any two people", _duplicates),
    "near": ("samples as near to training as few new people are", _near),
    "ratio": ("median distance to the nearest training volume, over that of new people", _ratio),
    "preference": ("samples whose nearest person was trained on, among as many as held out", _preference),
    "covered": ("training subjects that the samples are nearest to", _covered),
    "membership": ("AUC of telling who was trained on", _membership),
}


def nearest_pairs(near: Neighbourhood, synthetic: Measured, people: People, most: int) -> list[tuple[int, int]]:
    """The rows of the ``most`` synthetic volumes that are nearest to training ones, and of these."""
    usable, order = np.flatnonzero(synthetic.usable), np.argsort(near.synthetic)[:most]
    return [(int(usable[place]), int(people.training[near.synthetic_nearest[place]])) for place in order]
