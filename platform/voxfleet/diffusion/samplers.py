"""Samplers as tables of coefficients, computed once in float64 and applied by one loop.

A row of a table is ``(t, ca, cb, a, b, c, d)``: with the network's answer ``out`` at timestep t,

    x0 = ca * x + cb * out
    x  = a * x + b * x0 + c * (x0 of the row before) + d * noise

so a new sampler is a function that returns a table, and one line in SAMPLERS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from voxfleet.diffusion.guidance import Denoiser
from voxfleet.diffusion.process import Process


def trailing_timesteps(timesteps: int, steps: int) -> Tensor:
    """``steps`` timesteps from timesteps - 1 downwards, evenly spaced and ending above 0 ("trailing"), int64."""
    return (torch.linspace(timesteps, 0, steps + 1, dtype=torch.float64)[:-1].round() - 1).long()


def ddim(process: Process, steps: int) -> Tensor:
    """Deterministic DDIM (eta 0), equation 12 of Song et al. (2021), as a table (steps, 7) float64."""
    t = trailing_timesteps(process.config.timesteps, steps)
    now = process.alphas_cumprod[t]
    after = torch.cat([now[1:], torch.ones(1, dtype=torch.float64)])
    a = ((1 - after) / (1 - now)).sqrt()
    b = after.sqrt() - a * now.sqrt()
    zero = torch.zeros_like(a)
    return torch.stack([t.double(), *process.x0_coefficients(t), a, b, zero, zero], dim=1)


SAMPLERS: dict[str, Callable[[Process, int], Tensor]] = {"ddim": ddim}


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How latents are drawn from a trained model.

    Args:
        name: the sampler: ddim.
        steps: network evaluations along the trajectory (guidance doubles their cost).
        guidance_scale: classifier-free guidance; 1 for none, larger for samples more typical of their class.
    """

    name: str = "ddim"
    steps: int = 50
    guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"name is {self.name!r}; it must be one of {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more")


def sampler_table(config: SamplerConfig, process: Process) -> Tensor:
    """The table of ``config``.

    Raises:
        ValueError: if it asks for more steps than the process has timesteps.
    """
    if config.steps > process.config.timesteps:
        raise ValueError(f"steps is {config.steps}; the model was trained with {process.config.timesteps} timesteps")
    return SAMPLERS[config.name](process, config.steps)


def sample(denoiser: Denoiser, table: Tensor, x: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
    """Run a table from noise x (B, ...) to a sample; ``noise(step)`` gives the noise of steps 1, 2, ...

    The state stays float32 whatever the denoiser computes in.
    """
    x0 = torch.zeros_like(x)
    for step, (t, ca, cb, a, b, c, d) in enumerate(table.tolist(), start=1):
        out = denoiser(x, torch.full((len(x),), int(t), device=x.device))
        last, x0 = x0, ca * x + cb * out
        x = a * x + b * x0 + c * last
        if d:
            x = x + d * noise(step)
    return x
