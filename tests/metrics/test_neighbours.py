"""Nearest neighbours of rows, and distances of volumes that may be shifted."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from voxfleet.metrics import neighbours as module
from voxfleet.metrics.neighbours import aligned_distances, distances, nearest, neighbours, thumbnails


def rows(n, d=7, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.fixture(params=[(1024, 8192), (4, 3)], ids=["one block", "many blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", request.param[0])
    monkeypatch.setattr(module, "_COLUMNS", request.param[1])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("count", [1, 3, 11])
def test_neighbours_are_those_of_all_distances(count):
    x, y = rows(13), rows(11, seed=1)
    every = cdist(x.astype(np.float64), y.astype(np.float64))
    distances, indices = neighbours(x, y, count=count)
    np.testing.assert_array_equal(indices, np.argsort(every, axis=1)[:, :count])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :count], rtol=1e-12)


@pytest.mark.usefixtures("_blocks")
def test_within_a_set_a_row_is_not_its_own_neighbour():
    x = rows(10)
    x[7] = x[2]
    every = cdist(x, x)
    np.fill_diagonal(every, np.inf)
    distances, indices = nearest(x)
    np.testing.assert_array_equal(indices, every.argmin(axis=1))
    np.testing.assert_allclose(distances, every.min(axis=1), rtol=1e-6)
    assert (indices[7], indices[2], distances[7]) == (2, 7, 0)


def test_a_copy_is_at_zero_even_far_from_the_origin():
    x = rows(50, 200) + np.float32(1e4)
    near = x[:5] + np.float32(0.125)
    distances, indices = nearest(np.concatenate([x[:5], near]), x)
    assert indices.tolist() == [*range(5), *range(5)]
    assert (distances[:5] == 0).all()
    np.testing.assert_allclose(distances[5:], 0.125 * np.sqrt(200))
    assert nearest(x.astype(np.float16), x.astype(np.float16))[0].max() == 0


@pytest.mark.parametrize(
    ("x", "y", "count", "reason"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), 1, "two arrays"),
        (np.zeros(3), np.zeros((2, 3)), 1, "two arrays"),
        (np.zeros((0, 3)), np.zeros((2, 3)), 1, "two arrays"),
        (np.zeros((2, 3)), np.zeros((0, 3)), 1, "0 rows to choose from"),
        (np.zeros((2, 3)), None, 2, "2 rows to choose from"),
        (np.zeros((2, 3)), np.zeros((2, 3)), 0, "count is 0"),
        (np.zeros((2, 3)), np.array([[0, 0, np.nan]]), 1, "not finite"),
        (np.array([[0, 0, np.inf]]), np.zeros((2, 3)), 1, "not finite"),
    ],
)
def test_neighbours_refuse_what_has_none(x, y, count, reason):
    with pytest.raises(ValueError, match=reason):
        neighbours(x, y, count=count)


def heads(n, seed=0):
    """(n, 20, 24, 18) smooth volumes in [0, 1] with a margin of background."""
    noise = np.random.default_rng(seed).normal(size=(n, 12, 16, 10))
    smooth = gaussian_filter(noise, (0, 2, 2, 2))
    volumes = np.clip(0.5 + 0.2 * smooth / smooth.std(), 0, 1)
    return np.pad(volumes, [(0, 0), *[(4, 4)] * 3]).astype(np.float32)


def test_an_aligned_distance_is_the_smallest_over_all_shifts():
    volume, *candidates = heads(4)
    shifts = [(a, b, c) for a in range(-2, 3) for b in range(-2, 3) for c in range(-2, 3)]
    expected = [
        min(np.sqrt(np.square(volume - np.roll(c, shift, (0, 1, 2)).astype(float)).mean()) for shift in shifts)
        for c in candidates
    ]
    np.testing.assert_allclose(aligned_distances(volume, np.stack(candidates), reach=2), expected, rtol=1e-6)


@pytest.mark.parametrize("shift", [(0, 0, 0), (3, -2, 1), (-3, -3, 3)])
def test_a_shifted_copy_is_at_zero(shift):
    volumes = heads(3)
    moved = np.roll(volumes[1], shift, axis=(0, 1, 2))
    distances = aligned_distances(moved, volumes, reach=3)
    assert distances[1] == 0
    assert min(distances[0], distances[2]) > 0.1
    noisy = moved + np.random.default_rng(1).normal(0, 0.02, moved.shape).astype(np.float32)
    assert aligned_distances(noisy, volumes)[1] == pytest.approx(0.02, rel=0.05)


def test_a_shift_beyond_reach_stays_a_difference_and_does_not_wrap_around():
    volumes = heads(1)
    assert aligned_distances(np.roll(volumes[0], 3, axis=0), volumes, reach=2)[0] > 0.05
    edge = np.zeros((1, 8, 8, 8))
    edge[0, 0], edge[0, 3:5] = 1, 0.5
    opposite = edge[0, ::-1]
    assert aligned_distances(opposite, edge, reach=1)[0] == pytest.approx(np.sqrt(2 / 8))


def test_thumbnails_find_the_shifted_copy_for_the_exact_search():
    real = heads(40)
    moved = np.roll(real[[5, 17, 30]], (3, -2, 1), axis=(1, 2, 3))
    _, candidates = neighbours(thumbnails(moved, 6), thumbnails(real, 6), count=5)
    for volume, near, truth in zip(moved, candidates, (5, 17, 30), strict=True):
        assert near[aligned_distances(volume, real[near]).argmin()] == truth


def test_thumbnails_are_means_of_blocks():
    volumes = np.random.default_rng(0).random((2, 8, 4, 6))
    volumes[:, :, 0] += 50  # moved by one voxel to the middle
    moved = np.roll(volumes, 1, axis=2)
    expected = moved.reshape(2, 2, 4, 2, 2, 2, 3).mean(axis=(2, 4, 6)).reshape(2, 8)
    np.testing.assert_allclose(thumbnails(volumes, 2), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"give \(n, D, H, W\)"):
        thumbnails(volumes[0], 2)


def test_alignment_refuses_what_does_not_fit():
    volumes = heads(2)
    with pytest.raises(ValueError, match="candidates"):
        aligned_distances(volumes[0], volumes[0])
    with pytest.raises(ValueError, match="candidates"):
        aligned_distances(volumes[0], volumes[:0])
    for reach in (-1, 18):
        with pytest.raises(ValueError, match=f"reach is {reach}"):
            aligned_distances(volumes[0], volumes, reach)
    with pytest.raises(ValueError, match="not finite"):
        aligned_distances(np.full_like(volumes[0], np.nan), volumes)


def test_distances_of_all_pairs_are_those_of_differences():
    rng = np.random.default_rng(0)
    x, y = (
        5 + rng.standard_normal((40, 9000)).astype(np.float16),
        5 + rng.standard_normal((30, 9000)).astype(np.float16),
    )
    np.testing.assert_allclose(distances(x, y), cdist(x.astype(float), y.astype(float)), rtol=1e-4)
    with pytest.raises(ValueError, match="two arrays"):
        distances(x, y[:, :5])
