"""Statistics of the channels of latents, from pieces that merge.

Letters: n latents, C channels, d/h/w voxels of a latent. A posterior is a Gaussian of mean mu and deviation sigma =
exp(logvar / 2), a draw is mu + sigma * eps (Kingma & Welling, "Auto-Encoding Variational Bayes", 2013).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from voxfleet.metrics.checks import check

EDGES = np.linspace(-6, 6, 121)  # of the histogram, in standard deviations
FAR = 4.0  # standard deviations
_POWERS = np.arange(1, 5)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelSums:
    """Sums over the standardised latents of a set: what two machines need to exchange about their parts of it.

    All but ``n`` and ``top_logvar`` are arrays of float64; mu and sigma are in units of each channel's ``std``.

    Args:
        n: values of a channel.
        powers: sums of mu, mu^2, mu^3, mu^4, (4, C).
        products: sums of the products of two channels' mu, (C, C).
        sigma: sum of sigma, (C,).
        variance: sum of sigma^2, (C,).
        low: smallest mu, (C,).
        high: largest mu, (C,).
        far: values of mu beyond FAR standard deviations, (C,).
        histogram: values of mu between EDGES, those outside in the first and last bin, (C, bins).
        top_logvar: the largest log-variance, as it is stored.
    """

    n: int
    powers: np.ndarray
    products: np.ndarray
    sigma: np.ndarray
    variance: np.ndarray
    low: np.ndarray
    high: np.ndarray
    far: np.ndarray
    histogram: np.ndarray
    top_logvar: float

    @classmethod
    def of(cls, mu: np.ndarray, logvar: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> "ChannelSums":
        """Sums over latents, standardised by ``mean`` and ``std`` (C,).

        Args:
            mu: (n, C, d, h, w).
            logvar: the same shape.
            mean: of each channel.
            std: of each channel, above 0.

        Raises:
            ValueError: if an axis is missing or empty, or a value not finite.
        """
        for values, name in ((mu, "means"), (logvar, "log-variances")):
            check(values, "n, C, d, h, w", name)
        z = (_by_channel(mu) - np.asarray(mean)[:, None]) / np.asarray(std)[:, None]  # (C, n d h w)
        sigma = np.exp(_by_channel(logvar) / 2) / np.asarray(std)[:, None]
        inside = z.clip(EDGES[0], EDGES[-1])
        return cls(
            n=z.shape[1],
            powers=np.stack([(z**power).sum(axis=1) for power in _POWERS]),
            products=z @ z.T,
            sigma=sigma.sum(axis=1),
            variance=(sigma**2).sum(axis=1),
            low=z.min(axis=1),
            high=z.max(axis=1),
            far=(np.abs(z) > FAR).sum(axis=1).astype(np.float64),
            histogram=np.stack([np.histogram(row, EDGES)[0] for row in inside]).astype(np.float64),
            top_logvar=float(logvar.max()),
        )

    def merge(self, other: "ChannelSums") -> "ChannelSums":
        """Sums over both parts together; ``functools.reduce(ChannelSums.merge, parts)`` merges many."""
        extremes = {
            "low": np.minimum(self.low, other.low),
            "high": np.maximum(self.high, other.high),
            "top_logvar": max(self.top_logvar, other.top_logvar),
        }
        summed = [field.name for field in fields(self) if field.name not in extremes]
        return ChannelSums(**extremes, **{name: getattr(self, name) + getattr(other, name) for name in summed})

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(self).items()}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "ChannelSums":
        """What ``document`` gave."""
        arrays = {key: np.array(value) for key, value in document.items() if isinstance(value, list)}
        return cls(**{**document, **arrays})

    @property
    def mean(self) -> np.ndarray:
        """Of the standardised draws, (C,): 0 where the statistics are those of this set."""
        return self.powers[0] / self.n

    @property
    def std(self) -> np.ndarray:
        """Of the standardised draws in expectation over eps, (C,): 1 where the statistics are those of this set."""
        return np.sqrt(self._moments[0] + self.variance / self.n)

    @property
    def noise_share(self) -> np.ndarray:
        """Share of the variance of a draw that is the posterior's noise, (C,): mean(sigma^2) / var(mu + sigma eps)."""
        noise = self.variance / self.n
        return noise / np.maximum(self._moments[0] + noise, np.finfo(float).tiny)

    @property
    def total_noise_share(self) -> float:
        """``noise_share`` of all channels together, as a network sees them: standardised, so that each weighs alike."""
        noise = self.variance.sum() / self.n
        return float(noise / max(self._moments[0].sum() + noise, np.finfo(float).tiny))

    @property
    def correlation(self) -> np.ndarray:
        """Of the channels' mu, (C, C); 0 beside a channel that is constant."""
        covariance = self.products / self.n - np.outer(self.mean, self.mean)
        scale = np.sqrt(np.maximum(np.diagonal(covariance), 0))
        scale = np.where(scale > 0, scale, np.inf)
        return covariance / np.outer(scale, scale) + np.diag(np.isinf(scale).astype(float))

    @property
    def skewness(self) -> np.ndarray:
        """Of mu, (C,); 0 for a Gaussian, and for a channel that is constant."""
        variance, third, _ = self._moments
        return np.divide(third, variance**1.5, out=np.zeros_like(third), where=variance > 0)

    @property
    def excess_kurtosis(self) -> np.ndarray:
        """Of mu, (C,); 0 for a Gaussian, and for a channel that is constant."""
        variance, _, fourth = self._moments
        return np.divide(fourth, variance**2, out=np.full_like(fourth, 3), where=variance > 0) - 3

    @property
    def _moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Second, third and fourth central moment of mu, each (C,)."""
        m1, m2, m3, m4 = self.powers / self.n
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        return np.maximum(m2 - m1**2, 0), third, m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4


def _by_channel(values: np.ndarray) -> np.ndarray:
    """(n, C, d, h, w) as (C, n d h w) float64."""
    return values.astype(np.float64).swapaxes(0, 1).reshape(values.shape[1], -1)
