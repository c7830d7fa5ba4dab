"""Clouds of vectors: known answers, and pieces that give the whole."""

import functools
import math

import numpy as np
import pytest

from voxfleet.metrics.clouds import Cloud, separation, spread_ratio


def vectors(n, shift=0.0, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(shift, scale, (n, 40))


def test_centre_and_variance_are_those_of_numpy_also_from_pieces():
    x = vectors(30, shift=2, scale=3)
    parts = functools.reduce(Cloud.merge, map(Cloud.of, np.split(x, [1, 7, 25])))
    for cloud in (Cloud.of(x), parts):
        np.testing.assert_allclose(cloud.centre, x.mean(axis=0))
        assert cloud.variance == pytest.approx(x.var(axis=0, ddof=1).sum())
        assert cloud.n == 30


def test_samples_of_one_distribution_are_one_apart_whatever_their_sizes():
    for sizes in ((5, 200), (50, 50)):
        pairs = [[Cloud.of(vectors(n, seed=2 * s + i)) for i, n in enumerate(sizes)] for s in range(200)]
        found = [separation(*pair) ** 2 for pair in pairs]
        assert np.mean(found) == pytest.approx(1, abs=0.1)


def test_what_is_apart_and_what_is_narrow_is_told():
    a, b, narrow = Cloud.of(vectors(50)), Cloud.of(vectors(50, shift=1, seed=1)), Cloud.of(vectors(50, scale=0.5))
    assert separation(a, b) == pytest.approx(math.sqrt(1 / 0.04), rel=0.2)
    assert spread_ratio(narrow, a) == pytest.approx(0.5, rel=0.01)
    assert separation(a, a) == 0


def test_one_vector_has_no_width():
    one, many = Cloud.of(vectors(1)), Cloud.of(vectors(5))
    assert all(math.isnan(value) for value in (one.variance, separation(one, many), spread_ratio(one, many)))
