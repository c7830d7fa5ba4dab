"""Figures of an evaluation: how far a synthetic set is from the real one, and real sets are from each other.

Letters: N volumes of both sets together, S slices, F features, k components.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import ray

from voxfleet.engine.between import (
    Stored,
    coordinates,
    dissimilarity_ratio,
    frechet_distance,
    kernels_of,
    kid,
    manifold_field,
    ms_ssim_of_pairs,
    root_mean_square,
    score_ratio,
    spectral,
    spread_ratio,
    standardised,
    transferred,
)
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.measures import AUTOENCODER, Measured
from voxfleet.metrics.manifold import Manifold
from voxfleet.metrics.resampling import Distance, Pool, compare
from voxfleet.metrics.scores import pairs
from voxfleet.metrics.statistics import Interval, effect_size, wilson

_COMPONENTS = 64
_NEIGHBOURS = 5
_FEW = 40  # volumes of each set, of whose pairs the MS-SSIM is found
DISEASE = "Disease"
ANATOMY = {
    "brain_ml": "brain volume",
    "csf_ml": "fluid volume",
    "grey_ml": "grey matter volume",
    "white_ml": "white matter volume",
    "ventricles_ml": "fluid deep inside (ventricles)",
    "cnr": "contrast of grey and white matter",
    "symmetry": "left-right symmetry",
    "sharpness": "sharpness",
    "brain_mean": "mean intensity of the brain",
    "hippocampi_ml": "hippocampal volume",
    "hippocampus_smaller_ml": "volume of the smaller hippocampus",
    "hippocampus_asymmetry": "hippocampal asymmetry",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the verdict.

    Attributes:
        key: for machines.
        name: for readers.
        found: with its interval.
        floor: what real sets of as many subjects give, if that is known.
        wanted: what is asked for, in words.
        passed: whether it is so; None where nothing is asked for, or it could not be computed.
        reason: why it could not.
    """

    key: str
    name: str
    found: Interval | None = None
    floor: Interval | None = None
    wanted: str = ""
    passed: bool | None = None
    reason: str = ""


def attempted(key: str, name: str, make: Callable[[], Figure]) -> Figure:
    """What ``make`` gives, or the reason for which the data do not allow it."""
    try:
        return make()
    except ValueError as error:
        return Figure(key=key, name=name, reason=str(error))


@dataclass(frozen=True)
class Both:
    """The real and one synthetic set together.

    Attributes:
        pool: the volumes of both that can be compared: real ones first.
        classes: class names.
        labels: class of each volume, (N,).
        scalars: figures of each volume, (N,) each.
        small: (N, d, h, w), the volumes at a lower resolution.
        spectra: (N, bins), power by frequency.
        features: (N, S, F), by name.
        probabilities: (N, classes) by the classifier, if there is one.
        held_out: real volumes that were not trained on, (N,) bool.
    """

    pool: Pool
    classes: tuple[str, ...]
    labels: np.ndarray
    scalars: Mapping[str, np.ndarray]
    small: Stored
    spectra: np.ndarray
    features: Mapping[str, Stored]
    probabilities: np.ndarray | None
    held_out: np.ndarray

    @classmethod
    def of(cls, real: Measured, synthetic: Measured) -> "Both":
        """Both sets, without the volumes in which no brain was found."""
        rows = [np.flatnonzero(part.usable) for part in (real, synthetic)]
        number = {name: index for index, name in enumerate(real.volumes.classes)}
        named = [np.array(part.volumes.classes)[part.volumes.labels] for part in (real, synthetic)]
        labels = [np.array([number[name] for name in names]) for names in named]
        subjects = np.unique(real.volumes.subjects[rows[0]], return_inverse=True)[1]
        all_subjects = np.concatenate([subjects, len(subjects) + np.arange(len(rows[1]))])

        def both(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return np.concatenate([first[rows[0]], second[rows[1]]])

        split = len(rows[0])
        return cls(
            pool=Pool(all_subjects, np.arange(split), np.arange(split, len(all_subjects))),
            classes=real.volumes.classes,
            labels=both(*labels),
            scalars={name: both(values, synthetic.scalars[name]) for name, values in real.scalars.items()},
            small=Stored.of(both(real.small, synthetic.small)),
            spectra=both(real.spectra, synthetic.spectra),
            features={
                name: Stored.of(both(values, synthetic.features[name])) for name, values in real.features.items()
            },
            probabilities=both(real.probabilities, synthetic.probabilities)
            if real.probabilities is not None and synthetic.probabilities is not None
            else None,
            held_out=both(real.volumes.splits == "test", np.zeros(len(synthetic), bool)),
        )

    @property
    def anatomy(self) -> dict[str, str]:
        """Names of the anatomical figures that were measured, by their keys."""
        return {key: name for key, name in ANATOMY.items() if not np.isnan(self.scalars[key]).all()}

    def components(self, name: str) -> int:
        """How many principal axes of the features ``name`` Frechet distances are taken along.

        A Gaussian in as many dimensions as there are samples has no covariance worth its name.
        """
        _, slices, width = self.features[name].array.shape
        return max(1, min(_COMPONENTS, self.pool.n // 2, len(self.pool.real) * slices - 1, width))

    def pools(self) -> Iterator[tuple[str, Pool]]:
        """All volumes, and those of each class, by a name."""
        yield "all", self.pool
        for label, name in enumerate(self.classes):
            yield name, self.pool.only(self.labels == label)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A figure that is to be computed by ``compare``.

    Attributes:
        key, name: as of Figure.
        distance: takes ``data`` and two weightings of the volumes.
        data: in the object store; many figures share it.
        pool: the volumes.
        less_is_worse: whether a synthetic set falls short of real ones, instead of being too far from them.
        with_copies: see ``compare``.
    """

    key: str
    name: str
    distance: Callable[[np.ndarray, np.ndarray, np.ndarray], float]
    data: ray.ObjectRef
    pool: Pool
    less_is_worse: bool = False
    with_copies: bool = True


def compared_figures(both: Both, *, repeats: int, seed: int) -> dict[str, list[Figure]]:
    """The figures between the two sets, by group, computed side by side on the cluster."""
    asked = {
        "Distances": list(_distances(both)),
        "Fidelity and coverage": list(_manifolds(both, AUTOENCODER)),
        "Diversity": [*_diversity(both), _dissimilarity(both), *_scores(both)],
        "Anatomy": [*_anatomy(both), _spectrum(both)],
        DISEASE: list(_transfer(both)),
    }
    figures = {
        group: [_figure.remote(one.data, _without_data(one), repeats, seed) for one in every]
        for group, every in asked.items()
    }
    with ray_errors():
        found = {group: ray.get(refs) for group, refs in figures.items()}
    found[DISEASE] = [*map(judged_where_taught, found[DISEASE]), *effect_figures(both)]
    if both.probabilities is not None:
        found["Class"] = list(_consistency(both, both.probabilities))
    return {group: figures for group, figures in found.items() if figures}


def _without_data(asked: _Asked) -> _Asked:
    return dataclasses.replace(asked, data=None)


@ray.remote(num_cpus=1)
def _figure(data: np.ndarray, asked: _Asked, repeats: int, seed: int) -> Figure:
    return compared(
        asked.key,
        asked.name,
        functools.partial(asked.distance, data),
        asked.pool,
        repeats=repeats,
        seed=seed,
        less_is_worse=asked.less_is_worse,
        with_copies=asked.with_copies,
    )


def compared(
    key: str,
    name: str,
    distance: Distance,
    pool: Pool,
    *,
    repeats: int,
    seed: int,
    less_is_worse: bool = False,
    with_copies: bool = True,
) -> Figure:
    """The figure that ``compare`` finds; see there and _Asked."""

    def make() -> Figure:
        comparison = compare(distance, pool, repeats=repeats, seed=seed, with_copies=with_copies)
        found, floor = comparison.found, comparison.floor
        passed = found.high >= floor.low if less_is_worse else found.low <= floor.high
        return Figure(key=key, name=name, found=found, floor=floor, wanted="as between real sets", passed=passed)

    return attempted(key, name, make)


def _distances(both: Both) -> Iterator[_Asked]:
    """Kernel and Frechet distances, by features and class."""
    for name, features in both.features.items():
        kernels, components = kernels_of(features), both.components(name)
        ways = {
            "KID": (kid, kernels),
            f"Frechet distance ({components} components)": (
                frechet_distance,
                features.apply(coordinates, both.pool.real, components),
            ),
        }
        for group, pool in both.pools():
            for way, (distance, found) in ways.items():
                key = f"{way.split()[0].lower()}/{name}/{group}".replace(", ", "/")
                yield _Asked(key=key, name=f"{way} of {name}, {group}", distance=distance, data=found, pool=pool)


def _manifolds(both: Both, name: str) -> Iterator[_Asked]:
    """Precision, recall, density and coverage by the features ``name``."""
    means = Stored.of(both.features[name].array.mean(axis=1, keepdims=True))
    data = means.apply(coordinates, both.pool.real, both.components(name))
    neighbours = max(1, min(_NEIGHBOURS, both.pool.n // 2 - 1))
    for field in Manifold._fields:
        yield _Asked(
            key=f"{field}/{name}",
            name=f"{field} ({name}, {neighbours} neighbours)",
            distance=functools.partial(manifold_field, field, neighbours),
            data=data,
            pool=both.pool,
            less_is_worse=True,
            with_copies=False,
        )


def _diversity(both: Both) -> Iterator[_Asked]:
    """How much the volumes of a class differ from each other, synthetic over real."""
    data = both.small.apply(root_mean_square)
    for group, pool in both.pools():
        name = f"mean difference of two volumes, synthetic over real, {group}"
        yield _Asked(
            key=f"diversity/{group}", name=name, distance=spread_ratio, data=data, pool=pool, less_is_worse=True
        )


def _dissimilarity(both: Both) -> _Asked:
    """How unlike two volumes are, by MS-SSIM, which sees structure where the difference above sees brightness."""
    pool = both.pool.few(_FEW, 0)
    found = [rows[pairs(len(rows), len(rows) ** 2, 0)] for rows in (pool.real, pool.synthetic) if len(rows) > 1]
    return _Asked(
        key="ms_ssim",
        name="1 - MS-SSIM of two volumes, synthetic over real",
        distance=dissimilarity_ratio,
        data=both.small.apply(
            ms_ssim_of_pairs, np.concatenate(found) if len(found) == 2 else np.zeros((0, 2), np.int64)
        ),
        pool=pool,
        less_is_worse=True,
    )


def _spectrum(both: Both) -> _Asked:
    """What blur and noise change."""
    name = "power spectrum, root mean square difference in dB"
    data = ray.put(both.spectra)
    return _Asked(key="anatomy/spectrum", name=name, distance=spectral, data=data, pool=both.pool)


def _scores(both: Both) -> Iterator[_Asked]:
    """The Inception Score by the classifier: sure of each volume, and of all classes."""
    if both.probabilities is not None:
        name = "Inception Score by the classifier, synthetic over real"
        data = ray.put(both.probabilities)
        yield _Asked(
            key="inception_score", name=name, distance=score_ratio, data=data, pool=both.pool, less_is_worse=True
        )


def _consistency(both: Both, probabilities: np.ndarray) -> Iterator[Figure]:
    """How often the classifier finds the class that a sample was asked for, beside that of real people held out."""
    right = probabilities.argmax(axis=1) == both.labels
    for group, pool in both.pools():
        name = f"volumes in which the classifier finds their class, {group}"
        yield attempted(f"class/{group}", name, functools.partial(_found, f"class/{group}", name, right, pool, both))


def _found(key: str, name: str, right: np.ndarray, pool: Pool, both: Both) -> Figure:
    rows = pool.synthetic, pool.real[both.held_out[pool.real]]
    made, real = (wilson(int(right[r].sum()), len(r)) for r in rows)
    passed = made.high >= real.low
    return Figure(key=key, name=name, found=made, floor=real, wanted="as in real people held out", passed=passed)


def _anatomy(both: Both) -> Iterator[_Asked]:
    """How far the synthetic set's anatomy is from the real one, in standard deviations."""
    for key, name in both.anatomy.items():
        data = ray.put(both.scalars[key])
        label = f"{name}, difference in standard deviations"
        yield _Asked(key=f"anatomy/{key}", name=label, distance=standardised, data=data, pool=both.pool)


def _transfer(both: Both) -> Iterator[_Asked]:
    """Whether what the synthetic set teaches about the disease holds in real people."""
    measured = [both.scalars[key] for key in both.anatomy if np.isfinite(both.scalars[key]).all()]
    if len(both.classes) == 2 and measured:
        name = f"AUC of {both.classes[1]} in real people, learned from the other set's anatomy (logistic regression)"
        data = ray.put(np.column_stack([*measured, both.labels]))
        yield _Asked(key="transfer", name=name, distance=transferred, data=data, pool=both.pool, less_is_worse=True)


def judged_where_taught(figure: Figure) -> Figure:
    """An AUC has no verdict where other real people do not teach the classes either: they are too few, say."""
    if figure.floor and figure.floor.low <= 0.5:
        return dataclasses.replace(figure, passed=None, wanted="(real people do not teach it either)")
    return figure


def effect_figures(both: Both) -> Iterator[Figure]:
    """How far the second class is from the first, in each set: does the synthetic one carry the disease?"""
    if len(both.classes) != 2:
        return
    for key, name in both.anatomy.items():
        title = f"{name}, {both.classes[1]} less {both.classes[0]} (Hedges' g)"
        yield attempted(
            f"effect/{key}", title, functools.partial(_effect, f"effect/{key}", title, both, both.scalars[key])
        )


def _effect(key: str, name: str, both: Both, values: np.ndarray) -> Figure:
    rows = (both.pool.real, both.pool.synthetic)
    real, found = (effect_size(*(values[r[both.labels[r] == label]] for label in (1, 0))) for r in rows)
    as_real = found.low <= real.high and found.high >= real.low
    return Figure(key=key, name=name, found=found, floor=real, wanted="as in the real set", passed=as_real)
