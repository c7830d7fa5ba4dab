"""Distances between two sets of features, from pieces that merge: moments (Frechet) and kernels (KID)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from voxfleet.metrics.checks import check

_BLOCK = 2048  # slices a side of a block of kernels, which takes 50 MB (100 to 150 in float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Number, mean and scatter of a set of features: what two machines need to exchange about their parts of it.

    Args:
        n: number of samples.
        mean: (d,) float64.
        scatter: (d, d) float64, the sum of the outer products of the deviations from the mean.

    Raises:
        ValueError: if the shapes do not fit, or a value is not finite.
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    def __post_init__(self) -> None:
        check(self.mean, "d", "means")
        check(self.scatter, "d, d", "scatters")
        if self.n < 1 or self.scatter.shape != 2 * self.mean.shape:
            raise ValueError(f"moments of {self.n} samples, {self.mean.shape} and {self.scatter.shape}, do not fit")

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Moments of ``features`` (n, d), n of 1 or more; ValueError if their shape is another or one is not finite."""
        check(features, "n, d", "features")
        values = np.asarray(features, dtype=np.float64)
        mean = values.mean(axis=0)
        deviations = values - mean
        return cls(n=len(values), mean=mean, scatter=deviations.T @ deviations)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together; ``functools.reduce(Moments.merge, parts)`` merges many.

        Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances" (1982), equation 2.1.
        """
        _same_features(self, other)
        n, apart = self.n + other.n, other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n=n, mean=self.mean + apart * (other.n / n), scatter=scatter)

    @property
    def covariance(self) -> np.ndarray:
        """(d, d), without bias; ValueError for one sample."""
        if self.n < 2:
            raise ValueError("1 sample has no covariance; give 2 or more")
        return self.scatter / (self.n - 1)

    def projected(self, basis: np.ndarray) -> "Moments":
        """Moments of the coordinates of the same samples along the columns of ``basis`` (d, k)."""
        if basis.ndim != 2 or len(basis) != len(self.mean):
            raise ValueError(f"the basis is {basis.shape}; it must be ({len(self.mean)}, k)")
        return Moments(n=self.n, mean=self.mean @ basis, scatter=basis.T @ self.scatter @ basis)


def principal_axes(moments: Moments, k: int) -> np.ndarray:
    """The ``k`` orthonormal directions in which the set varies most, the first the most, (d, k).

    Raises:
        ValueError: if there are no ``k`` such directions: n samples vary in n - 1 directions at most.
    """
    most = min(moments.n - 1, len(moments.mean))
    if not 1 <= k <= most:
        raise ValueError(f"{k} principal axes of {moments.n} samples of {len(moments.mean)} features; ask for 1-{most}")
    return np.linalg.eigh(moments.scatter).eigenvectors[:, : -k - 1 : -1]


def frechet(a: Moments, b: Moments) -> float:
    """Frechet distance of the Gaussians with these moments: |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2).

    Dowson & Landau, "The Frechet distance between multivariate normal distributions" (1982); on features of Inception
    it is the FID of Heusel et al. (2017). The trace of (S_a S_b)^1/2 is the sum of the singular values of S_a^1/2
    S_b^1/2, which is exact also where samples are fewer than features and a square root of the product is not.

    Raises:
        ValueError: if the sets differ in their number of features, or one has a single sample.
    """
    _same_features(a, b)
    apart = a.mean - b.mean
    common = np.linalg.norm(_factor(a.covariance).T @ _factor(b.covariance), "nuc")
    return max(0.0, float(apart @ apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * common))


def kernel_matrix(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kernel of each volume of ``x`` (n, s, d) with each of ``y`` (m, s, d), the mean over all s^2 pairs of slices.

    The kernel is KID's, (x.y / d + 1)^3: Binkowski et al., "Demystifying MMD GANs" (2018). Kernels of rows and columns
    of volumes computed apart stack to those of all.

    Args:
        x: features of ``s`` slices of each volume. Products are in float32, or in float64 for float64 features.
        y: like ``x``.

    Returns:
        (n, m) float64.

    Raises:
        ValueError: if the shapes do not fit, or a feature is not finite.
    """
    check(x, "n, s, d", "features")
    check(y, "m, s, d", "features")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"features are {x.shape} and {y.shape}; both need the same slices and features")
    return np.block([[_kernel_block(x[rows], y[columns]) for columns in _blocks(y)] for rows in _blocks(x)])


def mmd2(
    xx: np.ndarray,
    yy: np.ndarray,
    xy: np.ndarray,
    x_weights: np.ndarray | None = None,
    y_weights: np.ndarray | None = None,
) -> float:
    """Squared maximum mean discrepancy of two sets of volumes, without bias: 0 in the mean, and so also below 0.

    Gretton et al., "A kernel two-sample test" (2012), equation 3; with :func:`kernel_matrix` it is KID. A set against
    itself is below 0: pairs of a volume with itself count only between the sets.

    Args:
        xx: kernels within the first set, (n, n).
        yy: kernels within the second, (m, m).
        xy: kernels between them, (n, m).
        x_weights: how often a bootstrap drew each volume, (n,); once where left out. Pairs of two draws of one volume
            are left out too.
        y_weights: the same for the second set, (m,).

    Raises:
        ValueError: if the shapes do not fit, a value is not finite, or a set has fewer than two different volumes.
    """
    n, m = len(xx), len(yy)
    if (xx.shape, yy.shape, xy.shape) != ((n, n), (m, m), (n, m)):
        raise ValueError(f"kernels are {xx.shape}, {yy.shape} and {xy.shape}; they must be (n, n), (m, m) and (n, m)")
    w, v = _weights(x_weights, n), _weights(y_weights, m)
    value = _mean_within(xx, w) + _mean_within(yy, v) - 2 * float(w @ xy @ v) / (w.sum() * v.sum())
    if not np.isfinite(value):
        raise ValueError("kernels hold NaN or infinity; leave out the volumes that they belong to")
    return value


def _same_features(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {len(a.mean)} and of {len(b.mean)} features; use one feature extractor for both")


def _factor(covariance: np.ndarray) -> np.ndarray:
    """(d, r) with S = F F^T, without the directions in which S is 0 but for rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(values.dtype).eps * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])


def _blocks(x: np.ndarray) -> Iterator[slice]:
    """The volumes of ``x`` (n, s, d) in runs of at most ``_BLOCK`` slices, or of one volume."""
    step = max(1, _BLOCK // x.shape[1])
    return (slice(start, start + step) for start in range(0, len(x), step))


def _kernel_block(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Like :func:`kernel_matrix`, at once."""
    s, d = x.shape[1:]
    dtype = np.result_type(x, y, np.float32)
    kernel = x.reshape(-1, d).astype(dtype) @ y.reshape(-1, d).astype(dtype).T  # (n s, m s)
    kernel /= d
    kernel += 1
    cubes = kernel * kernel
    cubes *= kernel
    return cubes.reshape(len(x), s, len(y), s).mean(axis=(1, 3), dtype=np.float64)


def _weights(weights: np.ndarray | None, n: int) -> np.ndarray:
    values = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ValueError(
            f"weights are {values.shape}, or some below 0 or not finite; give how often each of {n} counts"
        )
    if np.count_nonzero(values) < 2:
        raise ValueError(f"{np.count_nonzero(values)} different volumes in a set; a distance needs 2 or more")
    return values


def _mean_within(kernels: np.ndarray, weights: np.ndarray) -> float:
    """Mean of (n, n) kernels over the pairs of different volumes."""
    squares = weights**2
    pairs = weights.sum() ** 2 - squares.sum()
    return float(weights @ kernels @ weights - squares @ np.diagonal(kernels)) / float(pairs)
