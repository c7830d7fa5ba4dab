"""The sanity figures of a synthetic set, on volumes whose figures are known."""

import numpy as np
import pytest

from voxfleet.metrics.cohort import mean_correlation, outside_range, pairwise_difference, tissue_counts


def volumes(n=4):
    return np.random.default_rng(0).random((n, 5, 6, 7)).astype(np.float32)


def test_correlation_is_of_the_means_inside_the_brain():
    real = volumes()
    assert mean_correlation(real, real[::-1]) == pytest.approx(1.0)
    outside = real.mean(axis=0) <= 0.2
    changed = real.copy()
    changed[:, outside] = 9.0
    assert mean_correlation(real, changed) == pytest.approx(1.0)
    assert mean_correlation(real, -real) == pytest.approx(-1.0)


def test_pairwise_difference_is_the_mean_over_pairs():
    assert pairwise_difference(np.stack([np.full((2, 2, 2), v) for v in (0.0, 1.0, 3.0)])) == pytest.approx(2.0)
    assert pairwise_difference(np.repeat(volumes(1), 3, axis=0)) == 0


def test_counts_and_ranges():
    assert tissue_counts(np.array([[[[0.2, 0.3, 0.31, 0.9]]]])).tolist() == [2]
    assert outside_range(np.array([100, 200]), np.array([84, 86, 229, 231]), 0.15) == 2
