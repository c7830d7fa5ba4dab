"""Distances between sets of latents."""

import torch
from torch import Tensor

_SAME = 0.1  # of the usual distance: nearer vectors are of one subject


def energy_coefficient(x: Tensor, y: Tensor) -> float:
    """Energy distance of two sets of vectors, (n, d) and (m, d), over twice their mean distance: about 0 to 1.

    0 for samples of one distribution (without bias, so that it may lie below). Szekely & Rizzo, "Energy statistics"
    (2013), section 5, with U-statistics.
    """
    between = torch.cdist(x.double(), y.double()).mean()
    within = [torch.pdist(part.double()).mean() for part in (x, y)]
    return float((2 * between - sum(within)) / (2 * between))


def novelty(x: Tensor, known: Tensor, subjects: Tensor) -> Tensor:
    """How far each of x (B, d) lies on the way from the nearest of ``known`` (n, d) to another subject's, (B,).

    0 for a copy of a known vector, also with noise on it, which is across that way; 0.5 for what is no nearer to it
    than to another. It is the coordinate on the line between the two, the largest over all others. The ratio of the two
    distances, by which copies are told elsewhere (Yoon et al., "Diffusion Probabilistic Models Generalize when They
    Fail to Memorize", 2023), depends on the noise.

    Args:
        x: vectors.
        known: those that may have been copied.
        subjects: a number for each known vector, (n,); vectors of one subject do not count as others. Nor do those
            that lie so near to each other that they must be of one subject under two names.
    """
    from_x = torch.cdist(x.double(), known.double()).square()  # (B, n)
    nearest = from_x.argmin(dim=1)
    apart = torch.cdist(known[nearest].double(), known.double()).square()  # (B, n)
    of_others = subjects[nearest][:, None] != subjects[None]
    of_others &= apart > _SAME**2 * apart.median(dim=1, keepdim=True).values
    way = (from_x.gather(1, nearest[:, None]) - from_x + apart) / (2 * apart)
    return way.masked_fill(~of_others, -torch.inf).max(dim=1).values
