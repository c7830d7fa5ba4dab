"""Ways between two latents. Letters: B batch."""

import torch
from torch import Tensor


def lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """The straight line from ``start`` to ``end`` (B, ...) at weights (B,) in [0, 1]."""
    return torch.lerp(start, end, _spread(weight, start))


def slerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """The arc from ``start`` to ``end`` (B, ...) at weights (B,) in [0, 1]: Shoemake (1985), equation 3.

    Between draws of normal noise it keeps their length, so every point is as likely as the ends; the straight line does
    not. Where the ends point the same way, or opposite ways (where no arc is the shortest), it is the straight line.
    """
    cosine = torch.nn.functional.cosine_similarity(start.flatten(1).double(), end.flatten(1).double())
    angle = torch.acos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    straight = sine < 1e-6
    of_start = torch.where(straight, 1 - weight, torch.sin((1 - weight) * angle) / sine)
    of_end = torch.where(straight, weight, torch.sin(weight * angle) / sine)
    return _spread(of_start, start) * start + _spread(of_end, end) * end


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
