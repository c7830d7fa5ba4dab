"""Frechet and kernel distances against closed forms, double loops and MONAI."""

from functools import reduce

import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric, MMDMetric

from voxfleet.metrics import distances
from voxfleet.metrics.distances import Moments, frechet, kernel_matrix, mmd2, principal_axes


def gaussian(mean, covariance, n=11):
    return Moments(n=n, mean=np.array(mean, float), scatter=np.array(covariance, float) * (n - 1))


def sample(n, d, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset


def slices(n, s=3, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, s, d))


def kernels_of(x, y):
    return kernel_matrix(x, x), kernel_matrix(y, y), kernel_matrix(x, y)


def literal_kid(x, y):
    """The unbiased estimator, pair by pair, of lists of (number of the volume, its one slice)."""

    def mean(a, b, within):
        return np.mean([(p @ q / len(p) + 1) ** 3 for i, p in a for j, q in b if not within or i != j])

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


# Moments


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_merged_moments_are_those_of_the_whole(seed, offset):
    rng = np.random.default_rng(seed)
    values = sample(40, 7, seed, offset)
    cuts = np.sort(rng.choice(np.arange(1, 40), rng.integers(1, 39), replace=False))
    parts = [Moments.of(part) for part in np.split(values, cuts)]
    whole, merged = Moments.of(values), reduce(Moments.merge, rng.permutation(parts))
    assert merged.n == whole.n == 40
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(whole.covariance, np.cov(values, rowvar=False), rtol=1e-6, atol=1e-6)


def test_moments_of_single_samples_merge():
    values = sample(6, 4)
    merged = reduce(Moments.merge, [Moments.of(value[None]) for value in values])
    np.testing.assert_allclose(merged.covariance, np.cov(values, rowvar=False), rtol=1e-9)


def test_moments_are_float64_whatever_comes():
    values = (sample(30, 3) + 1e3).astype(np.float32)
    moments = Moments.of(values)
    assert moments.mean.dtype == moments.scatter.dtype == np.float64
    np.testing.assert_allclose(moments.covariance, np.cov(values.astype(float), rowvar=False), rtol=1e-9)


def test_projected_moments_are_those_of_the_projections():
    values, basis = sample(20, 6), np.random.default_rng(1).normal(size=(6, 2))
    projected, expected = Moments.of(values).projected(basis), Moments.of(values @ basis)
    assert projected.n == expected.n
    np.testing.assert_allclose(projected.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(projected.scatter, expected.scatter, rtol=1e-9)


def test_principal_axes_are_those_of_most_variance():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    moments = gaussian(np.zeros(4), turn @ np.diag([1.0, 9.0, 2.0, 4.0]) @ turn.T)
    axes = principal_axes(moments, 3)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(moments.projected(axes).covariance, np.diag([9.0, 4.0, 2.0]), atol=1e-12)


def test_axes_beyond_the_samples_are_refused():
    principal_axes(Moments.of(sample(4, 9)), 3)
    with pytest.raises(ValueError, match="4 principal axes of 4 samples of 9 features; ask for 1-3"):
        principal_axes(Moments.of(sample(4, 9)), 4)


# Frechet


def test_frechet_of_commuting_gaussians():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a = gaussian([1, 2, 3], turn @ np.diag([1.0, 4.0, 9.0]) @ turn.T)
    b = gaussian([1, 0, 2], turn @ np.diag([4.0, 1.0, 0.0]) @ turn.T, n=7)
    assert frechet(a, b) == pytest.approx(5 + 1 + 1 + 9, rel=1e-9)
    assert frechet(b, a) == pytest.approx(16, rel=1e-9)


def test_frechet_of_gaussians_that_do_not_commute():
    """In two dimensions tr (A B)^1/2 = sqrt(tr AB + 2 sqrt(det AB)), from its two eigenvalues."""
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
    assert not np.allclose(a @ b, b @ a)
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 25 + np.trace(a) + np.trace(b) - 2 * root
    assert frechet(gaussian([0, 0], a), gaussian([3, 4], b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_gaussians_on_lines():
    """Of rank 1 in 100 dimensions: tr (uu' vv')^1/2 = |u.v|; roots of products of rounding errors would show."""
    u, v = np.random.default_rng(0).normal(size=(2, 100))
    zero = np.zeros(100)
    expected = u @ u + v @ v - 2 * abs(u @ v)
    assert frechet(gaussian(zero, np.outer(u, u)), gaussian(zero, np.outer(v, v))) == pytest.approx(expected, rel=1e-9)
    assert frechet(gaussian(zero, np.zeros((100, 100))), gaussian(v, np.outer(u, u))) == pytest.approx(u @ u + v @ v)


@pytest.mark.parametrize("n", [3, 20, 200])
def test_a_set_is_at_no_distance_from_itself(n):
    moments = Moments.of(sample(n, 60, offset=50.0))
    assert 0 <= frechet(moments, moments) < 1e-10 * np.trace(moments.covariance)


def test_frechet_is_monais():
    x, y = sample(80, 12, 1), sample(60, 12, 2, offset=0.5)
    expected = FIDMetric()(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-6)


# Kernels


def test_kernels_are_means_over_all_pairs_of_slices():
    x, y = slices(3), slices(4, seed=1)
    literal = [[np.mean([(p @ q / 5 + 1) ** 3 for p in a for q in b]) for b in y] for a in x]
    np.testing.assert_allclose(kernel_matrix(x, y), literal, rtol=1e-12)


@pytest.mark.parametrize("block", [1, 3, 7, 12])  # slices: 1, 1, 2 and 4 volumes at a time
def test_blocks_of_kernels_are_parts_of_the_whole(monkeypatch, block):
    x, y = slices(10).astype(np.float32), slices(9, seed=1).astype(np.float32)
    whole = kernel_matrix(x, y)
    parts = [
        [kernel_matrix(x[rows], y[columns]) for columns in (slice(0, 2), slice(2, 9))]
        for rows in (slice(0, 1), slice(1, 10))
    ]
    np.testing.assert_allclose(np.block(parts), whole, rtol=1e-6)
    monkeypatch.setattr(distances, "_BLOCK", block)
    np.testing.assert_allclose(kernel_matrix(x, y), whole, rtol=1e-6)


def test_blocks_hold_so_many_slices_or_one_volume(monkeypatch):
    sizes, block = [], distances._kernel_block
    monkeypatch.setattr(distances, "_kernel_block", lambda x, y: sizes.extend([len(x), len(y)]) or block(x, y))
    for size, volumes in ((2, 1), (7, 2)):
        monkeypatch.setattr(distances, "_BLOCK", size)
        kernel_matrix(slices(5), slices(6))
        assert max(sizes) == volumes


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float16, 2e-3)])
def test_kernels_of_short_floats_are_those_of_long_ones(dtype, tolerance):
    x = np.abs(slices(6, 4, 200))
    kernels = kernel_matrix(x.astype(dtype), x.astype(dtype))
    assert kernels.dtype == np.float64
    np.testing.assert_allclose(kernels, kernel_matrix(x, x), rtol=tolerance)


def test_kid_is_that_of_the_double_loop():
    x, y = slices(5, 1), slices(4, 1, seed=1) + 0.3
    expected = literal_kid(list(enumerate(x[:, 0])), list(enumerate(y[:, 0])))
    assert mmd2(*kernels_of(x, y)) == pytest.approx(expected, rel=1e-9)


def test_weights_are_repeated_volumes():
    x, y, w, v = slices(5, 1), slices(4, 1, seed=1), np.array([2, 0, 1, 3, 1]), np.array([1, 1, 0, 2])
    repeated = [[(i, a[i, 0]) for i in range(len(a)) for _ in range(c[i])] for a, c in ((x, w), (y, v))]
    assert mmd2(*kernels_of(x, y), w, v) == pytest.approx(literal_kid(*repeated), rel=1e-9)


def test_weights_of_one_change_nothing_and_of_none_leave_out():
    x, y, w = slices(6), slices(5, seed=1), np.array([1, 0, 1, 1, 0, 1])
    xx, yy, xy = kernels_of(x, y)
    assert mmd2(xx, yy, xy, np.ones(6), np.ones(5)) == mmd2(xx, yy, xy)
    assert mmd2(xx, yy, xy, w) == pytest.approx(mmd2(*kernels_of(x[w > 0], y)), rel=1e-9)
    assert mmd2(xx, yy, xy, 3 * w) == pytest.approx(mmd2(xx, yy, xy, w), rel=1e-9)


def test_mmd_is_monais_with_its_linear_kernel():
    x, y = sample(6, 8, 1), sample(6, 8, 2)
    expected = MMDMetric()(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert mmd2(x @ x.T, y @ y.T, x @ y.T) == pytest.approx(expected, rel=1e-9)


def test_kid_has_no_bias_at_few_volumes():
    """Over 1,500 draws of four and of five volumes of one distribution; with their own pairs it would be far above."""
    rng = np.random.default_rng(0)
    unbiased, biased = [], []
    for _ in range(1500):
        volumes = rng.normal(size=(9, 1, 4)) + 0.3 * rng.normal(size=(9, 2, 4))  # slices of one volume are alike
        kernels = kernels_of(volumes[:4], volumes[4:])
        unbiased.append(mmd2(*kernels))
        biased.append(kernels[0].mean() + kernels[1].mean() - 2 * kernels[2].mean())
    errors = [np.std(values) / np.sqrt(len(values)) for values in (unbiased, biased)]
    assert abs(np.mean(unbiased)) < 3 * errors[0]
    assert np.mean(biased) > 10 * errors[1]


def test_kid_grows_with_the_difference():
    x, y = slices(30), slices(30, seed=1)
    values = [mmd2(*kernels_of(x, y + shift)) for shift in (0, 0.5, 1)]
    assert values[0] < 0.1 < values[1] < values[2]


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), r"features are \(3,\); they must be \(n, d\)"),
        (np.zeros((0, 3)), r"no axis empty"),
        (np.array([[0.0, np.nan], [1, 1], [np.inf, 0]]), "features of 2 of 3 rows hold NaN or infinity"),
    ],
)
def test_moments_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        Moments.of(values)


def test_moments_that_do_not_fit_are_refused():
    a, b, one = Moments.of(sample(5, 3)), Moments.of(sample(5, 4)), Moments.of(sample(1, 3))
    with pytest.raises(ValueError, match="3 and of 4 features; use one feature extractor"):
        a.merge(b)
    with pytest.raises(ValueError, match="3 and of 4 features; use one feature extractor"):
        frechet(a, b)
    with pytest.raises(ValueError, match="1 sample has no covariance"):
        frechet(a, one)
    with pytest.raises(ValueError, match=r"must be \(3, k\)"):
        a.projected(np.eye(4))
    with pytest.raises(ValueError, match="do not fit"):
        Moments(n=0, mean=a.mean, scatter=a.scatter)
    with pytest.raises(ValueError, match="do not fit"):
        Moments(n=2, mean=a.mean, scatter=b.scatter)
    with pytest.raises(ValueError, match="NaN"):
        Moments(n=2, mean=a.mean * np.nan, scatter=a.scatter)


def test_kernels_refuse():
    with pytest.raises(ValueError, match="same slices and features"):
        kernel_matrix(slices(3), slices(3, s=2))
    with pytest.raises(ValueError, match=r"must be \(m, s, d\)"):
        kernel_matrix(slices(3), slices(3)[:, 0])
    with pytest.raises(ValueError, match="1 of 3 rows hold NaN"):
        kernel_matrix(slices(3), np.where(np.arange(3)[:, None, None] == 1, np.nan, slices(3)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), "how often each of 3 counts"),
        (np.array([1, 1, -1]), "below 0"),
        (np.array([1, 1, np.nan]), "not finite"),
        (np.array([0, 3, 0]), "1 different volumes in a set; a distance needs 2"),
    ],
)
def test_weights_are_checked(weights, message):
    kernels = kernels_of(slices(3), slices(4, seed=1))
    with pytest.raises(ValueError, match=message):
        mmd2(*kernels, weights)
    with pytest.raises(ValueError, match=message):
        mmd2(kernels[1], kernels[0], kernels[2].T, None, weights)


@pytest.mark.parametrize("which", range(3))
def test_mmd_refuses_kernels_that_are_not_finite_or_do_not_fit(which):
    kernels = list(kernels_of(slices(3), slices(4, seed=1)))
    kernels[which][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        mmd2(*kernels)
    kernels[which] = kernels[which][:, :2]
    with pytest.raises(ValueError, match=r"must be \(n, n\)"):
        mmd2(*kernels)
