"""Classifier-free guidance on all channels. Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022)."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor, float], Tensor]


def guided(model: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Tensor, null: int) -> Denoiser:
    """A denoiser ``f(x, t, scale)`` for ``labels`` (B,): both answers come from one batch of 2 B.

    ``null`` is the label that means "none". A scale of 1 asks the model once, for the labels alone. Channels beyond
    those of x (a learned variance) are the labels' own.
    """
    both = torch.cat([labels, torch.full_like(labels, null)])

    def denoise(x: Tensor, t: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return model(x, t, labels).float()
        conditional, unconditional = model(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
        answer, variance = conditional[:, : x.shape[1]], conditional[:, x.shape[1] :]
        answer = answer + (scale - 1) * (answer - unconditional[:, : x.shape[1]])
        return torch.cat([answer, variance], dim=1) if variance.shape[1] else answer

    return denoise
