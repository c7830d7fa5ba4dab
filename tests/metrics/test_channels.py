"""Statistics of the channels of latents: known answers, and pieces that give the whole."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import stats

from voxfleet.metrics.channels import EDGES, ChannelSums

MEAN, STD = [3.0, -1.0], [2.0, 0.5]


def latents(n=12, seed=0):
    rng = np.random.default_rng(seed)
    shift, scale = (np.array(values)[:, None, None, None] for values in (MEAN, STD))
    mu = rng.gamma(3, size=(n, 2, 3, 4, 3)) * scale + shift
    return mu.astype(np.float32), rng.normal(-3, 1, mu.shape).astype(np.float32)


def signs(n, sigma):
    """Half of mu 1 and half -1: variance 1 exactly; the same sigma everywhere in each channel."""
    mu = np.where(np.arange(n * 2 * 8) % 2, 1.0, -1.0).reshape(n, 2, 2, 2, 2)
    logvar = np.broadcast_to(2 * np.log(np.array(sigma))[:, None, None, None], mu.shape)
    return mu, logvar


@pytest.mark.parametrize("sigma", [(0.5, 2.0), (1e-4, 30.0)])
def test_the_share_of_noise_is_that_of_the_known_sigma(sigma):
    sums = ChannelSums.of(*signs(6, sigma), [0.0, 0.0], [1.0, 1.0])
    squares = np.square(sigma)
    np.testing.assert_allclose(sums.noise_share, squares / (1 + squares), rtol=1e-6)
    np.testing.assert_allclose(sums.sigma / sums.n, sigma, rtol=1e-6)
    assert sums.total_noise_share == pytest.approx(squares.sum() / (2 + squares.sum()), rel=1e-6)
    np.testing.assert_allclose(sums.std, np.sqrt(1 + squares), rtol=1e-6)


def test_the_share_of_noise_is_that_of_real_draws_whatever_the_statistics():
    mu, logvar = latents(n=200)
    draws = mu + np.exp(logvar / 2) * np.random.default_rng(1).standard_normal(mu.shape)
    sums = ChannelSums.of(mu, logvar, MEAN, STD)
    by_channel = draws.swapaxes(0, 1).reshape(2, -1)
    found = np.exp(logvar).mean(axis=(0, 2, 3, 4)) / by_channel.var(axis=1)
    np.testing.assert_allclose(sums.noise_share, found, rtol=0.02)
    np.testing.assert_allclose(sums.std * STD, by_channel.std(axis=1), rtol=0.02)
    np.testing.assert_allclose(sums.mean * STD + MEAN, by_channel.mean(axis=1), rtol=0.02)
    other = ChannelSums.of(mu, logvar, [0.0, 0.0], [7.0, 0.1])
    np.testing.assert_allclose(other.noise_share, sums.noise_share, rtol=1e-9)


def test_the_moments_are_those_of_scipy():
    mu, logvar = latents()
    sums = ChannelSums.of(mu, logvar, MEAN, STD)
    by_channel = mu.astype(np.float64).swapaxes(0, 1).reshape(2, -1)
    np.testing.assert_allclose(sums.skewness, stats.skew(by_channel, axis=1), rtol=1e-9)
    np.testing.assert_allclose(sums.excess_kurtosis, stats.kurtosis(by_channel, axis=1), rtol=1e-9)
    np.testing.assert_allclose(sums.correlation, np.corrcoef(by_channel), atol=1e-12)
    z = (by_channel - np.array(MEAN)[:, None]) / np.array(STD)[:, None]
    np.testing.assert_allclose(sums.low, z.min(axis=1))
    np.testing.assert_allclose(sums.high, z.max(axis=1))
    assert sums.far.tolist() == (np.abs(z) > 4).sum(axis=1).tolist()
    assert sums.far.min() > 0
    assert sums.histogram.sum(axis=1).tolist() == [sums.n, sums.n] == [12 * 36] * 2
    assert sums.histogram[0, 0] == (z[0] < EDGES[1]).sum()
    assert sums.histogram[0, -1] == (z[0] >= EDGES[-2]).sum() > 0  # those beyond the last edge too
    assert sums.top_logvar == logvar.max()


@pytest.mark.parametrize("cuts", [[1], [5], [2, 3, 11], list(range(1, 12))])
def test_pieces_give_the_whole_for_any_split_and_through_a_document(cuts):
    mu, logvar = latents()
    whole = ChannelSums.of(mu, logvar, MEAN, STD)
    pieces = [ChannelSums.of(*part, MEAN, STD) for part in zip(np.split(mu, cuts), np.split(logvar, cuts), strict=True)]
    merged = functools.reduce(ChannelSums.merge, (ChannelSums.from_document(piece.document()) for piece in pieces))
    for field in dataclasses.fields(ChannelSums):
        np.testing.assert_allclose(getattr(merged, field.name), getattr(whole, field.name), rtol=1e-12, atol=1e-12)


def test_a_constant_channel_has_no_correlation_and_is_all_noise():
    mu, logvar = latents()
    mu[:, 1] = 0.25
    sums = ChannelSums.of(mu, logvar, [0.0, 0.25], [1.0, 1.0])
    assert sums.correlation.tolist() == [[pytest.approx(1), 0], [0, 1]]
    assert (sums.skewness[1], sums.excess_kurtosis[1], sums.noise_share[1]) == (0, 0, 1)


def test_latents_that_are_not_finite_are_refused():
    mu, logvar = latents()
    mu[3, 1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="means of 1 of 12 rows hold NaN or infinity"):
        ChannelSums.of(mu, logvar, MEAN, STD)
