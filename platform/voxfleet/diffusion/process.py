"""The forward process and what a network is trained to predict. Letters: B batch.

Ho et al., "Denoising Diffusion Probabilistic Models" (2020). Tables are float64; the arithmetic is float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def linear_betas(timesteps: int) -> Tensor:
    """DDPM's linear schedule: beta from 1e-4 to 0.02 (at 1000 timesteps; rescaled for another number), float64."""
    scale = 1000 / timesteps
    return torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"linear": linear_betas}
TARGETS = ("epsilon", "x0")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The diffusion process.

    Args:
        timesteps: number of noise levels in training.
        schedule: how the noise grows: linear.
        target: what the network predicts: epsilon (the noise) or x0 (the clean latents; needed where a patch holds
            more numbers than the network's hidden size).
    """

    timesteps: int = 1000
    schedule: str = "linear"
    target: str = "epsilon"

    def __post_init__(self) -> None:
        if self.timesteps < 21:  # below, the rescaled linear schedule has a beta of 1 or more
            raise ValueError(f"timesteps is {self.timesteps}; it must be at least 21")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r}; it must be one of {', '.join(TARGETS)}")


class Process:
    """q(x_t | x_0) = N(sqrt(alphas_cumprod_t) x_0, 1 - alphas_cumprod_t), equation 4 of Ho et al."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        betas = SCHEDULES[config.schedule](config.timesteps)
        self.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)  # (timesteps,) float64

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise x0 (B, ...) to timesteps t (B,) with ``noise`` of the same shape."""
        signal = self.alphas_cumprod.to(t.device)[t]
        return _spread(signal.sqrt(), x0) * x0 + _spread((1 - signal).sqrt(), x0) * noise

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """What the network should answer for this draw."""
        return noise if self.config.target == "epsilon" else x0

    def x0_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """float64 (ca, cb) with x0 = ca * x_t + cb * output, for timesteps t (S,) on the CPU."""
        signal = self.alphas_cumprod[t]
        if self.config.target == "epsilon":
            return signal.rsqrt(), -((1 - signal) / signal).sqrt()
        return torch.zeros_like(signal), torch.ones_like(signal)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.float().reshape(-1, *[1] * (like.dim() - 1))
