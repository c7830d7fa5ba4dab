"""Are the synthetic samples like real ones, and are there such for all real ones? Answered by nearest neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from voxfleet.metrics.checks import check

_BLOCK = 8_000_000  # distances at a time: 64 MB


class Manifold(NamedTuple):
    """Precision and density say how like the samples are, recall and coverage how much of the real set they reach."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: np.ndarray, synthetic: np.ndarray, k: int = 5) -> Manifold:
    """Precision, recall, density and coverage of a synthetic set, each 1 for one like the real set, or near 1.

    The ball of a sample reaches to its ``k``-th nearest other of the same set; what lies on its surface is outside, as
    in the code of Naeem et al. Precision is the share of synthetic samples in the ball of any real one, recall the
    share of real samples in the ball of any synthetic one: Kynkaanniemi et al., "Improved precision and recall metric
    for assessing generative models" (2019). Density is how many real balls a synthetic sample is in, over ``k`` (it may
    exceed 1), and coverage the share of real balls with a synthetic sample: Naeem et al., "Reliable fidelity and
    diversity metrics for generative models" (2020). For two draws of one distribution precision, recall and coverage
    depend on n, m and ``k``: compare with two halves of a real set.

    Args:
        real: features, (n, d).
        synthetic: features, (m, d).
        k: which neighbour, from 1 on.

    Raises:
        ValueError: if the shapes do not fit, a feature is not finite, or a set has no ``k``-th neighbours.
    """
    check(real, "n, d", "real features")
    check(synthetic, "m, d", "synthetic features")
    if real.shape[1] != synthetic.shape[1]:
        raise ValueError(f"features are {real.shape} and {synthetic.shape}; use one feature extractor for both")
    if not 1 <= k < min(len(real), len(synthetic)):
        raise ValueError(f"k is {k}; with {len(real)} real and {len(synthetic)} synthetic samples it must be less")
    real_radii, synthetic_radii = _radii(real, k), _radii(synthetic, k)
    balls = np.zeros(len(synthetic))  # real ones around each synthetic sample
    covered = recalled = 0
    for rows, distances in _distances(real, synthetic):
        inside = distances < real_radii[rows, None]
        balls += inside.sum(axis=0)
        covered += int(inside.any(axis=1).sum())
        recalled += int((distances < synthetic_radii).any(axis=1).sum())
    return Manifold(
        precision=float((balls > 0).mean()),
        recall=recalled / len(real),
        density=float(balls.mean()) / k,
        coverage=covered / len(real),
    )


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances of some rows of ``x`` (n, d) at a time to all of ``y`` (m, d): the rows, and (rows, m).

    From differences, not from products: copies are at 0, and a pair is as far apart in any block.
    """
    step = max(1, _BLOCK // len(y))
    for rows in (slice(start, start + step) for start in range(0, len(x), step)):
        yield rows, cdist(x[rows], y, "sqeuclidean")


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each sample of ``x`` (n, d) to its ``k``-th nearest other, (n,): it is its own nearest."""
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for _, block in _distances(x, x)])
