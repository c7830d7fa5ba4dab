"""Scores of one set (Inception Score) and of pairs of volumes (MS-SSIM), and which pairs to take."""

import numpy as np
import torch
from scipy.special import rel_entr
from torch import Tensor

from voxfleet.metrics.checks import check

_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of Wang et al. (2003), from the finest scale on
_WINDOW = 7  # voxels, as of voxfleet.metrics.image.ssim


def inception_score(probabilities: np.ndarray) -> float:
    """How sure a classifier is of each sample, and how evenly it uses its classes: 1 (worst) to the number of classes.

    exp of the mean of KL(p(y|x) || p(y)): Salimans et al., "Improved techniques for training GANs" (2016), over all
    samples at once.

    Args:
        probabilities: the classifier's, after the softmax, (n, c).

    Raises:
        ValueError: if the shape is another, or rows are not probabilities that sum to 1.
    """
    check(probabilities, "n, c", "probabilities")
    values = np.asarray(probabilities, dtype=np.float64)
    sums = values.sum(axis=1, keepdims=True)
    if values.min() < 0 or np.abs(sums - 1).max() > 1e-2:  # bfloat16 leaves some 1e-3
        raise ValueError(
            f"probabilities go down to {values.min():.3g} and sum to {sums.min():.3g}-{sums.max():.3g} a row; "
            "give a softmax over the classes"
        )
    values = values / sums
    return float(np.exp(rel_entr(values, values.mean(axis=0)).sum(axis=1).mean()))


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity of each pair of volumes, (B,); 1 where equal.

    Wang et al., "Multiscale structural similarity for image quality assessment" (2003), in three dimensions, with
    windows of 7^3 voxels and as many of its five scales as the shortest edge has room for: 2 from 14 voxels on, 3 from
    28, 4 from 63, 5 from 112, their weights scaled to sum to 1. So figures of one shape alone compare.

    Args:
        x: (B, 1, D, H, W), intensities in [0, 1].
        y: like ``x``.

    Raises:
        ValueError: if the shapes differ, an edge is too short, or a voxel is not finite.
    """
    if x.shape != y.shape or x.ndim != 5:
        raise ValueError(f"volumes are {tuple(x.shape)} and {tuple(y.shape)}; both must be the same (B, 1, D, H, W)")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("volumes hold NaN or infinity; leave those out")
    from monai.metrics import MultiScaleSSIMMetric  # MONAI takes seconds to import

    weights = np.array(_SCALE_WEIGHTS[: _scales(min(x.shape[2:]))])
    metric = MultiScaleSSIMMetric(
        spatial_dims=3, kernel_size=_WINDOW, weights=list(weights / weights.sum()), reduction="none"
    )
    return metric(x.float(), y.float()).flatten()


def pairs(n: int, count: int, seed: int) -> np.ndarray:
    """``count`` different pairs (i, j), i < j < ``n``, drawn evenly; all pairs where there are no more, (pairs, 2).

    Raises:
        ValueError: if ``n`` is below 2 or ``count`` below 1.
    """
    if n < 2 or count < 1:
        raise ValueError(f"{count} pairs of {n} samples; ask for 1 or more, of 2 samples or more")
    total = n * (n - 1) // 2
    rng = np.random.default_rng(seed)
    drawn = np.arange(total) if count >= total else np.sort(rng.choice(total, count, replace=False))
    j = ((1 + np.sqrt(1 + 8 * drawn)) // 2).astype(np.int64)  # pairs are numbered (0, 1), (0, 2), (1, 2), (0, 3) ...
    return np.stack([drawn - j * (j - 1) // 2, j], axis=1)


def _scales(edge: int) -> int:
    """How many scales have room in an edge of so many voxels: (n - 1)^2 windows by MONAI's rule, 2^(n - 1) in fact."""
    room = [n for n in range(2, len(_SCALE_WEIGHTS) + 1) if edge >= _WINDOW * max((n - 1) ** 2, 2 ** (n - 1))]
    if not room:
        raise ValueError(f"volumes have an edge of {edge} voxels; MS-SSIM needs {2 * _WINDOW} or more")
    return room[-1]
