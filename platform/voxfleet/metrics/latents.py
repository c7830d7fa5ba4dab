"""Distances between sets of latents."""

import torch
from torch import Tensor


def energy_coefficient(x: Tensor, y: Tensor) -> float:
    """Energy distance of two sets of vectors, (n, d) and (m, d), over twice their mean distance: about 0 to 1.

    0 for samples of one distribution (without bias, so that it may lie below). Szekely & Rizzo, "Energy statistics"
    (2013), section 5, with U-statistics.
    """
    between = torch.cdist(x.double(), y.double()).mean()
    within = [torch.pdist(part.double()).mean() for part in (x, y)]
    return float((2 * between - sum(within)) / (2 * between))


def nearest_distances(x: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    """How far each of x (B, d) lies from the nearest of normal distributions about ``means`` (n, d), (B,).

    Root mean square over the d numbers, after the ``variance`` (n,) that a draw has about its own mean is taken off: 0
    for a draw of one of them, and for its mean; the distance of the means for a draw of another.
    """
    squares = (torch.cdist(x.float(), means.float()).square() / x.shape[1] - variance).clamp(min=0)
    return squares.min(dim=1).values.sqrt()
