"""Maps of latents: principal axes of the training split, UMAP, and how far the classes of the sets are apart.

Letters: n latents, k principal axes.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voxfleet.data.latents import MIRRORED
from voxfleet.engine.latent_pieces import SYNTHETIC, TRAIN, Pieces
from voxfleet.metrics.clouds import Cloud, separation, spread_ratio
from voxfleet.metrics.distances import Moments, principal_axes

_MOST_AXES = 50
_NEIGHBOURS = 15  # of UMAP: its own default
LEAST_UMAP = 10  # latents
HELD_OUT = "held out"
_Key = tuple[str, int]  # set (train, held out or synthetic) and label


@dataclass(frozen=True)
class Group:
    """The latents of one class in one set, beside those of a class in the training split.

    Attributes:
        name: of both.
        n: latents.
        separation: see ``metrics.clouds``; from the training latents.
        spread: how wide it is over how wide the training latents are.
    """

    name: str
    n: int
    separation: float
    spread: float


@dataclass(frozen=True)
class LatentMap:
    """Where all latents stand, those of the real set first, each set in the order of its shards.

    Attributes:
        coordinates: along the principal axes of the training split, (n, k).
        explained: share of the training split's variance along each, (k,).
        labels: class of each, (n,).
        splits: of each, (n,); "synthetic" for what a model made, "mirrored" for mirror images of training heads.
        groups: classes of the sets compared, people alone.
    """

    coordinates: np.ndarray
    explained: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    groups: list[Group]

    def typical(self, split: str, label: int) -> int | None:
        """The row of the latent of class ``label`` in ``split`` that is nearest to their centre; None without any."""
        rows = np.flatnonzero((self.splits == split) & (self.labels == label))
        if not len(rows):
            return None
        found = self.coordinates[rows]
        return int(rows[np.linalg.norm(found - found.mean(axis=0), axis=1).argmin()])


def latent_map(pieces: Mapping[str, Pieces], classes: Sequence[str]) -> LatentMap:
    """The map of the latents that were measured; a block of their vectors is in memory at a time."""
    whole: Moments | None = None
    clouds: dict[_Key, Cloud] = {}
    for vectors, labels, splits in _blocks(pieces):
        if (train := np.isin(splits, (TRAIN, MIRRORED))).any():
            part = Moments.of(vectors[train])
            whole = whole.merge(part) if whole else part
        _add(clouds, vectors, labels, splits)
    assert whole  # there is no set without a training split
    axes = principal_axes(whole, min(_MOST_AXES, whole.n - 1, len(whole.mean)))
    along = np.diagonal(whole.projected(axes).scatter)
    parts = [((vectors - whole.mean) @ axes, labels, splits) for vectors, labels, splits in _blocks(pieces)]
    coordinates, labels, splits = (np.concatenate(column) for column in zip(*parts, strict=True))
    explained = along / max(float(np.trace(whole.scatter)), np.finfo(float).tiny)
    return LatentMap(coordinates, explained, labels, splits, _groups(clouds, classes))


def _blocks(pieces: Mapping[str, Pieces]) -> itertools.chain[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return itertools.chain.from_iterable(found.blocks() for found in pieces.values())


def _add(clouds: dict[_Key, Cloud], vectors: np.ndarray, labels: np.ndarray, splits: np.ndarray) -> None:
    names = np.array([split if split in (TRAIN, SYNTHETIC, MIRRORED) else HELD_OUT for split in splits.tolist()])
    for key in sorted(set(zip(names.tolist(), labels.tolist(), strict=True))):
        cloud = Cloud.of(vectors[(names == key[0]) & (labels == key[1])])
        clouds[key] = clouds[key].merge(cloud) if key in clouds else cloud


def _groups(clouds: Mapping[_Key, Cloud], classes: Sequence[str]) -> list[Group]:
    of_class = [
        (f"{name}, {kind}, from training", (kind, label), (TRAIN, label))
        for label, name in enumerate(classes)
        for kind in (HELD_OUT, SYNTHETIC)
    ]
    between = [
        (f"{classes[b]} from {classes[a]}, {'training' if kind == TRAIN else kind}", (kind, b), (kind, a))
        for a, b in itertools.combinations(range(len(classes)), 2)
        for kind in (TRAIN, SYNTHETIC)
    ]
    return [
        _group(name, clouds[key], clouds[reference])
        for name, key, reference in (*of_class, *between)
        if key in clouds and reference in clouds
    ]


def _group(name: str, cloud: Cloud, reference: Cloud) -> Group:
    return Group(name, cloud.n, separation(cloud, reference), spread_ratio(cloud, reference))


def umap_points(coordinates: np.ndarray, seed: int) -> np.ndarray:
    """A map (n, 2) of ``coordinates`` (n, k), n of LEAST_UMAP or more, in which neighbours stay neighbours.

    McInnes et al., "UMAP: Uniform Manifold Approximation and Projection" (2018). With a seed it runs on one thread.

    Raises:
        ModuleNotFoundError: if umap-learn is not installed.
    """
    import umap  # numba takes half a minute to compile it, for the first time

    reducer = umap.UMAP(n_neighbors=min(_NEIGHBOURS, len(coordinates) - 1), init="pca", random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(coordinates), dtype=np.float64)
