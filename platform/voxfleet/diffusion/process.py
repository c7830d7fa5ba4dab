"""The forward process, what a network is trained to predict, and how one prediction becomes another.

Every process noises as ``x_t = alpha_t x0 + sigma_t noise``: diffusion with alpha^2 + sigma^2 = 1 over discrete
timesteps, rectified flow with alpha = 1 - s and sigma = s over s = t / timesteps in (0, 1]. Coefficients are float64,
the arithmetic float32. Letters: B batch, S timesteps of a table.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from voxfleet.diffusion.schedules import SCHEDULES, zero_terminal_snr

FLOW = "flow"
TARGETS = ("epsilon", "v", "x0")
WEIGHTINGS = ("none", "min-snr", "v")
TIME_DENSITIES = ("uniform", "logit-normal")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The process and its training loss.

    Args:
        timesteps: number of noise levels in training; of flow, the value of t at pure noise.
        schedule: how the noise grows: linear, cosine, or flow (rectified flow).
        zero_terminal_snr: rescale linear or cosine so that the last timestep is pure noise.
        target: what the network predicts: epsilon (the noise), v (the velocity of the path from data to noise), or x0
            (the clean latents; needed where a patch holds more numbers than the network's hidden size).
        weighting: weight of the squared error: none; min-snr (as an error of x0, min(SNR, min_snr_gamma)); or v (as an
            error of v, whatever the target).
        min_snr_gamma: the limit of min-snr.
        time_density: how training draws the time of flow: uniform, or logit-normal (more often the middle).
    """

    timesteps: int = 1000
    schedule: str = "linear"
    zero_terminal_snr: bool = False
    target: str = "epsilon"
    weighting: str = "none"
    min_snr_gamma: float = 5.0
    time_density: str = "uniform"

    def __post_init__(self) -> None:
        choices = {
            "schedule": (*SCHEDULES, FLOW),
            "target": TARGETS,
            "weighting": WEIGHTINGS,
            "time_density": TIME_DENSITIES,
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key} is {getattr(self, key)!r}; it must be one of {', '.join(known)}")
        least = 21 if self.schedule == "linear" else 2  # below 21, the rescaled linear schedule has a beta of 1 or more
        if self.timesteps < least:
            raise ValueError(f"timesteps is {self.timesteps}; it must be at least {least}")
        if not 0 < self.min_snr_gamma < math.inf:
            raise ValueError(f"min_snr_gamma is {self.min_snr_gamma}; it must be above 0, and finite")
        if self.time_density != "uniform" and self.schedule != FLOW:
            raise ValueError(f"time_density is {self.time_density!r}, which only schedule flow has; use uniform")
        if self.zero_terminal_snr and self.schedule == FLOW:
            raise ValueError("zero_terminal_snr is true, but flow ends at pure noise already; leave it false")
        if self.target == "epsilon" and (self.zero_terminal_snr or self.schedule == FLOW):
            raise ValueError("target is 'epsilon', which says nothing of the data at pure noise; use v or x0")
        if self.weighting == "min-snr" and self.zero_terminal_snr:
            raise ValueError("weighting is 'min-snr', which never trains the last timestep of zero_terminal_snr; use v")


@functools.cache
def _alphas_cumprod(config: DiffusionConfig, device: torch.device) -> Tensor:
    """The signal left at each timestep, (timesteps,) float64; kept, since every training step needs it."""
    signal = torch.cumprod(1 - SCHEDULES[config.schedule](config.timesteps), dim=0)
    return (zero_terminal_snr(signal) if config.zero_terminal_snr else signal).to(device)


class Process:
    """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2): Ho et al. (2020), equation 4, or Liu et al. (2023), rectified flow."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.is_flow = config.schedule == FLOW

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """alpha^2 of diffusion at whole timesteps t, of its shape, float64."""
        return _alphas_cumprod(self.config, t.device)[t.long()]

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at timesteps t, of its shape, float64."""
        if self.is_flow:
            sigma = t.double() / self.config.timesteps
            return 1 - sigma, sigma
        signal = self.alphas_cumprod(t)
        return signal.sqrt(), (1 - signal).sqrt()

    def draw_timesteps(self, uniform: Tensor) -> Tensor:
        """Training timesteps (B,) from numbers in (0, 1): whole ones of diffusion, real ones of flow.

        Logit-normal time is the sigmoid of a standard normal number: Esser et al. (2024), equation 19.
        """
        if self.config.time_density == "logit-normal":
            uniform = torch.special.ndtri(uniform).sigmoid()
        t = uniform * self.config.timesteps
        return t if self.is_flow else t.long()

    def timestep_at(self, log_snr: float, device: torch.device) -> Tensor:
        """The timestep () whose log(alpha^2 / sigma^2) is ``log_snr``; of diffusion, the nearest one."""
        if self.is_flow:
            return torch.tensor(self.config.timesteps / (1 + math.exp(log_snr / 2)), device=device)
        signal = _alphas_cumprod(self.config, device)
        return (torch.logit(signal) - log_snr).abs().argmin()

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise x0 (B, ...) to timesteps t (B,) with ``noise`` of the same shape."""
        alpha, sigma = self.levels(t)
        return spread(alpha, x0) * x0 + spread(sigma, x0) * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should answer for this draw."""
        of_x0, of_noise = self._mix(self.config.target, *self.levels(t))
        return spread(of_x0, x0) * x0 + spread(of_noise, x0) * noise

    def _mix(self, target: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) with target = p x0 + q noise."""
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        if target == "v":  # the derivative of x_t along its path: over the angle (Salimans & Ho 2022), or over s
            return (-one, one) if self.is_flow else (-sigma, alpha)
        return (one, zero) if target == "x0" else (zero, one)

    def conversion(self, source: str, to: str, t: Tensor) -> tuple[Tensor, Tensor]:
        """float64 (A, B) with ``to = A x_t + B source``, for two of TARGETS at timesteps t."""
        alpha, sigma = self.levels(t)
        (p, q), (to_p, to_q) = self._mix(source, alpha, sigma), self._mix(to, alpha, sigma)
        determinant = alpha * q - sigma * p  # of x_t = alpha x0 + sigma noise, source = p x0 + q noise
        return (to_p * q - to_q * p) / determinant, (to_q * alpha - to_p * sigma) / determinant

    def convert(self, x: Tensor, out: Tensor, t: Tensor, to: str) -> Tensor:
        """The network's answer ``out`` at x (B, ...), t (B,) as another of TARGETS."""
        of_x, of_out = self.conversion(self.config.target, to, t)
        return spread(of_x, x) * x + spread(of_out, x) * out

    def posterior(self, x0: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and variance (B,) float64 of q(x_{t-1} | x_t, x_0) of diffusion, with x_{-1} = x_0."""
        a, b, variance, _ = posterior_coefficients(*self.neighbours(t))
        return spread(a, x) * x + spread(b, x) * x0, variance

    def neighbours(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alphas_cumprod at timesteps t and at t - 1 (1 before the first), float64."""
        return self.alphas_cumprod(t), torch.where(t > 0, self.alphas_cumprod(t - 1), 1.0)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight of the target's squared error at timesteps t, float64.

        Written as a weight of the error in x0, which is the target's times the square of the conversion's factor.
        min-snr: Hang et al. (2023), equation 9.
        """
        if self.config.weighting == "none":
            return torch.ones_like(t, dtype=torch.float64)
        alpha, sigma = self.levels(t)
        factor = self.conversion(self.config.target, "x0", t)[1].square()
        if self.config.weighting == "v":
            # the factor from x0 to v is 1 / sigma; without a limit the cleanest timesteps would drown the rest
            return factor / sigma.clamp(min=0.05).square()
        return factor * (alpha / sigma).square().clamp(max=self.config.min_snr_gamma)


def posterior_coefficients(now: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q(x_after | x_now, x_0) between any two alphas_cumprod: Ho et al., equations 6 and 7, for a respaced step too.

    Returns:
        a and b of the mean a x_now + b x_0; its variance; and beta, the variance of the forward step (the upper limit).
    """
    beta = 1 - now / after
    a = (now / after).sqrt() * (1 - after) / (1 - now)
    b = after.sqrt() * beta / (1 - now)
    return a, b, beta * (1 - after) / (1 - now), beta


def spread(values: Tensor, like: Tensor) -> Tensor:
    """One value a sample, (B,), as float32 that broadcasts over ``like`` (B, ...)."""
    return values.float().reshape(-1, *[1] * (like.dim() - 1))
