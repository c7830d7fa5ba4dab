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
