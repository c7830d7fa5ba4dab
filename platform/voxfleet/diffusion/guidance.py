"""Classifier-free guidance on all channels. Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022)."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


def guided(model: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Tensor, scale: float, null: int) -> Denoiser:
    """A denoiser ``f(x, t)`` for ``labels`` (B,): both answers come from one batch of 2 B.

    ``null`` is the label that means "none". A scale of 1 asks the model once, for the labels alone.
    """
    if scale == 1:
        return lambda x, t: model(x, t, labels).float()
    both = torch.cat([labels, torch.full_like(labels, null)])

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = model(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
        return conditional + (scale - 1) * (conditional - unconditional)

    return denoise
