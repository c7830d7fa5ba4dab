"""Noise schedules of discrete diffusion: beta at each timestep, in float64."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def linear_betas(timesteps: int) -> Tensor:
    """beta from 1e-4 to 0.02 at 1000 timesteps, rescaled for another number. Ho et al. (2020), section 4."""
    scale = 1000 / timesteps
    return torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)


def cosine_betas(timesteps: int) -> Tensor:
    """The signal falls as a squared cosine; beta at most 0.999. Nichol & Dhariwal (2021), equation 17."""
    time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that the last is exactly 0. Lin et al. (2024), algorithm 1."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"linear": linear_betas, "cosine": cosine_betas}
