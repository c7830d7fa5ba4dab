"""Clouds of vectors, from pieces that merge: where their centre is, how wide they are, how far two are apart."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """Number, sum and sum of squares of a set of vectors: less than ``distances.Moments``, so that it may be wide.

    Args:
        n: number of vectors.
        total: their sum, (d,) float64.
        squares: sum of their squared lengths.
    """

    n: int
    total: np.ndarray
    squares: float

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Cloud":
        """The cloud of ``vectors`` (n, d)."""
        wide = vectors.astype(np.float64)
        return cls(n=len(wide), total=wide.sum(axis=0), squares=float((wide**2).sum()))

    def merge(self, other: "Cloud") -> "Cloud":
        """Both clouds together."""
        return Cloud(n=self.n + other.n, total=self.total + other.total, squares=self.squares + other.squares)

    @property
    def centre(self) -> np.ndarray:
        """(d,)."""
        return self.total / self.n

    @property
    def variance(self) -> float:
        """Summed over the directions, without bias; NaN for one vector."""
        if self.n < 2:
            return math.nan
        return max(0.0, self.squares - self.n * float(self.centre @ self.centre)) / (self.n - 1)


def spread_ratio(cloud: Cloud, reference: Cloud) -> float:
    """How wide a cloud is over how wide another is: 1 where both vary alike. NaN where one has no width."""
    return math.sqrt(cloud.variance / reference.variance) if reference.variance else math.nan


def separation(a: Cloud, b: Cloud) -> float:
    """Distance of the centres over that which chance alone gives the centres of two such samples of one distribution.

    In the mean of squares it is 1 for two samples of one distribution, whatever their sizes. NaN where a set has one
    vector, or neither has a width.
    """
    chance = a.variance / a.n + b.variance / b.n
    return float(np.linalg.norm(a.centre - b.centre)) / math.sqrt(chance) if chance else math.nan
