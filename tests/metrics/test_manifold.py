"""Precision, recall, density and coverage against double loops, and on sets designed to have known ones."""

import numpy as np
import pytest

from voxfleet.metrics import manifold as module
from voxfleet.metrics.manifold import manifold


def sample(n, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def literal(real, synthetic, k):
    def radius(x, i):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    def inside(x, balls, radii):
        return [[np.linalg.norm(p - q) < r for q, r in zip(balls, radii, strict=True)] for p in x]

    real_radii, synthetic_radii = ([radius(x, i) for i in range(len(x))] for x in (real, synthetic))
    in_real, in_synthetic = inside(synthetic, real, real_radii), inside(real, synthetic, synthetic_radii)
    return (
        np.mean([any(row) for row in in_real]),
        np.mean([any(row) for row in in_synthetic]),
        np.mean([sum(row) for row in in_real]) / k,
        np.mean([any(row) for row in zip(*in_real, strict=True)]),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 50, 10_000])  # 1, 1 or 2, and all rows at a time
def test_they_are_those_of_the_double_loop(monkeypatch, k, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    real, synthetic = sample(30), 0.7 * sample(22, seed=1) + 0.4
    expected = literal(real, synthetic, k)
    assert min(expected) > 0
    assert manifold(real, synthetic, k) == pytest.approx(expected, rel=1e-12)


def test_no_more_distances_are_held_than_a_block_has(monkeypatch):
    sizes, cdist = [], module.cdist
    monkeypatch.setattr(module, "_BLOCK", 70)
    monkeypatch.setattr(module, "cdist", lambda x, y, metric: sizes.append(len(x) * len(y)) or cdist(x, y, metric))
    manifold(sample(30), sample(22))
    assert max(sizes) == 66


def test_a_set_is_all_of_itself():
    real = sample(40)
    assert manifold(real, real) == (1, 1, 1, 1)
    assert manifold(real, real[::-1].astype(np.float32), k=3)[:2] == (1, 1)


def test_sets_far_apart_share_nothing():
    assert manifold(sample(20), sample(20, seed=1) + 100) == (0, 0, 0, 0)


def test_copies_of_one_sample_cover_one():
    """The last of 1, 2, 4, 8 ... is no neighbour of another, so that it is in its own ball alone."""
    real = 2.0 ** np.arange(12)[:, None]
    assert manifold(real, np.repeat(real[-1:], 9, axis=0), k=2) == (1, 0, 1 / 2, 1 / 12)


def test_one_mode_of_two_is_precise_and_covers_half():
    left, right = sample(20), sample(20, seed=1) + 100
    assert manifold(np.concatenate([left, right]), left) == pytest.approx((1, 0.5, 1, 0.5))


def test_one_outlier_spoils_precision_and_not_density():
    """The case that Naeem et al. made density for: the ball of a real outlier takes in all synthetic samples."""
    real = np.concatenate([sample(40), [[300.0, 0, 0, 0]]])
    synthetic = sample(40, seed=1) + np.array([100, 0, 0, 0])
    assert manifold(real, synthetic).precision == 1
    assert manifold(real, synthetic).density == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("real", "synthetic", "k", "message"),
    [
        (sample(6), sample(9), 6, "k is 6; with 6 real and 9 synthetic samples it must be less"),
        (sample(9), sample(6), 6, "it must be less"),
        (sample(9), sample(6), 0, "k is 0;"),
        (sample(9), sample(9, d=3), 2, "one feature extractor"),
        (sample(9)[0], sample(9), 2, r"real features are \(4,\); they must be \(n, d\)"),
        (sample(9), np.full((9, 4), np.nan), 2, "synthetic features of 9 of 9 rows hold NaN"),
    ],
)
def test_it_refuses(real, synthetic, k, message):
    with pytest.raises(ValueError, match=message):
        manifold(real, synthetic, k)
