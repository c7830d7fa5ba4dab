"""Distances between two weightings of a pool of volumes, and what of them is computed once for all weightings.

Letters: N volumes of both sets together, S slices, F features, k components.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from voxfleet.metrics.anatomy import log_spectral_distance
from voxfleet.metrics.classification import transfer_auc
from voxfleet.metrics.distances import Moments, frechet, kernel_matrix, mmd2, principal_axes
from voxfleet.metrics.manifold import manifold
from voxfleet.metrics.scores import inception_score, ms_ssim

_BLOCK = 256  # volumes a side of one task
_AT_ONCE = 8  # volumes whose MS-SSIM is found at once
_LEAST_EDGE = 14  # voxels, for two scales of MS-SSIM
_ROWS = 4096  # whose moments are taken at once
_LARGE = 64e6  # bytes of an array: less is not worth the seconds that a new worker takes


@dataclass(frozen=True)
class Stored:
    """An array in the object store, where this process and all tasks of a node see it without a copy of their own."""

    ref: ray.ObjectRef
    array: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> "Stored":
        """``array`` as it is there; it may be let go."""
        ref = ray.put(array)
        return cls(ref, ray.get(ref))

    def apply(self, function: Callable[..., np.ndarray], *more: Any) -> ray.ObjectRef:
        """``function(array, *more)``, on the cluster; what worked on a large array ends, and its memory is free."""
        ends = {"max_calls": 1} if self.array.nbytes > _LARGE else {}
        return ray.remote(num_cpus=1, **ends)(function).remote(self.ref, *more)


def kid(kernels: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """KID of two weightings (N,), by the kernels (N, N) of all volumes."""
    return mmd2(kernels, kernels, kernels, a, b)


def frechet_distance(along: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of two weightings (N,) of volumes whose slices have these coordinates, (N, S, k)."""
    return frechet(*(_weighted_moments(along, weights) for weights in (a, b)))


def _weighted_moments(coordinates: np.ndarray, weights: np.ndarray) -> Moments:
    """Moments of the slices of volumes (N, S, k) that count ``weights`` (N,) times."""
    there = weights > 0
    times = np.repeat(weights[there], coordinates.shape[1])
    rows = coordinates[there].reshape(-1, coordinates.shape[2])
    mean = times @ rows / times.sum()
    deviations = rows - mean
    return Moments(n=int(times.sum()), mean=mean, scatter=(deviations * times[:, None]).T @ deviations)


def manifold_field(field: str, neighbours: int, coordinates: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """A ``field`` of Manifold, of coordinates (N, 1, k)."""
    return float(getattr(manifold(coordinates[a > 0, 0], coordinates[b > 0, 0], neighbours), field))


def dissimilarity_ratio(of_pairs: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """1 - MS-SSIM, second weighting over first; ``of_pairs`` (n, 3) holds two volumes and how similar they are."""
    if not len(of_pairs):
        raise ValueError(f"there are no two volumes, or they have an edge below {_LEAST_EDGE} voxels, which it needs")
    first, second = of_pairs[:, :2].astype(int).T
    times = [weights[first] * weights[second] for weights in (a, b)]
    real, made = (number @ (1 - of_pairs[:, 2]) / number.sum() for number in times)
    return float(made / real)


def ms_ssim_of_pairs(small: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each two ``rows``, (n, 2), these and the similarity of their volumes, (n, 3)."""
    if not len(rows) or min(small.shape[1:]) < _LEAST_EDGE:
        return np.zeros((0, 3))
    first, second = (torch.from_numpy(small[rows[:, side]])[:, None] for side in (0, 1))
    found = [ms_ssim(*both) for both in zip(first.split(_AT_ONCE), second.split(_AT_ONCE), strict=True)]
    return np.column_stack([rows, torch.cat(found).numpy()])


def spectral(spectra: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """How far the mean spectra (N, bins) of two weightings are apart, in dB."""
    return log_spectral_distance(*(weights @ spectra / weights.sum() for weights in (a, b)))


def score_ratio(probabilities: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The Inception Score of probabilities (N, classes), second weighting over first."""
    made, real = (inception_score(np.repeat(probabilities, weights.astype(int), axis=0)) for weights in (b, a))
    return made / real


def spread_ratio(apart: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The mean distance of two volumes of the second weighting (N,) over that of the first; ``apart`` is (N, N)."""
    return _spread(apart, b) / _spread(apart, a)


def _spread(apart: np.ndarray, weights: np.ndarray) -> float:
    """The mean distance (N, N) of two different volumes."""
    return float(weights @ apart @ weights / (weights.sum() ** 2 - (weights**2).sum()))


def standardised(values: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The absolute difference of two weighted means, over the standard deviation of the first."""
    means = [weights @ values / weights.sum() for weights in (a, b)]
    deviation = np.sqrt(a @ (values - means[0]) ** 2 / (a.sum() - 1))
    return float(abs(means[1] - means[0]) / max(deviation, np.finfo(float).tiny))


def root_mean_square(volumes: np.ndarray) -> np.ndarray:
    """The root mean square difference of each two of the ``volumes`` (N, d, h, w), (N, N)."""
    x = volumes.reshape(len(volumes), -1)
    centred = x - x.mean(axis=0, dtype=np.float32)
    squares = np.einsum("ij,ij->i", centred, centred)
    products = squares[:, None] + squares - 2 * centred @ centred.T
    np.fill_diagonal(products, 0)
    return np.sqrt(np.maximum(products, 0).astype(np.float64) / x.shape[1])


def coordinates(features: np.ndarray, real: np.ndarray, components: int) -> np.ndarray:
    """``features`` (N, S, F) along the axes in which those of the rows ``real`` vary most, (N, S, components)."""
    width = features.shape[2]
    rows = features[real].reshape(-1, width).astype(np.float64)
    if len(rows) > width:
        parts = np.array_split(rows, -(-len(rows) // _ROWS))
        axes = principal_axes(functools.reduce(Moments.merge, map(Moments.of, parts)), components)
    else:  # a scatter of so many features would be too large to look at
        axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2].T
    return (features.reshape(-1, width) @ axes[:, :components]).reshape(*features.shape[:2], components)


def kernels_of(features: Stored) -> ray.ObjectRef:
    """The kernel of each two volumes, (N, N), by blocks on the cluster."""
    parts = [slice(start, start + _BLOCK) for start in range(0, len(features.array), _BLOCK)]
    blocks = [_kernel_block.remote(features.ref, parts[j], parts[i]) for i in range(len(parts)) for j in range(i + 1)]
    return _symmetric.remote(len(features.array), *blocks)


@ray.remote(num_cpus=1)
def _kernel_block(features: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    return kernel_matrix(features[rows], features[columns])


@ray.remote(num_cpus=1)
def _symmetric(n: int, *blocks: np.ndarray) -> np.ndarray:
    """The matrix (n, n) of which these are the blocks above and on the diagonal, column by column."""
    whole, left = np.empty((n, n)), iter(blocks)
    for i in range(0, n, _BLOCK):
        for j in range(0, i + 1, _BLOCK):
            block = next(left)
            whole[j : j + _BLOCK, i : i + _BLOCK] = block
            whole[i : i + _BLOCK, j : j + _BLOCK] = block.T
    return whole


def transferred(measured: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Learned from the weighting ``b`` (N,), tested in ``a``; the last column of ``measured`` is the class."""
    return transfer_auc(measured[:, :-1], measured[:, -1] == 1, a, b)
