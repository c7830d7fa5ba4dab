"""Samplers as tables of coefficients, computed once in float64 and applied by one loop.

A row is ``(t, ca, cb, a, b, c, d, r, scale)``: with the network's answer ``out`` at timestep t, guided by ``scale``,

    x0 = ca * x + cb * out
    x  = a * x + b * x0 + c * (x0 of the row before) + d * noise

so a new sampler is a function that returns the columns a to r, and one line in SAMPLERS. A learned variance
multiplies d by exp(r * fraction), the fraction in [0, 1] being the network's. Letters: S rows, B batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from voxfleet.diffusion.guidance import Denoiser
from voxfleet.diffusion.process import Process, posterior_coefficients


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How latents are drawn from a trained model.

    Args:
        name: ddpm, ddim or dpm-solver++ for models of diffusion, euler or heun for those of flow.
        steps: steps along the trajectory; each evaluates the network once, those of heun but the last twice (guidance
            doubles the cost).
        guidance_scale: classifier-free guidance; 1 for none, larger for samples more typical of their class.
        guidance_interval: the part of the timesteps that is guided, as fractions of all of them: [0.2, 0.8] leaves the
            noisiest and the cleanest fifth alone; null guides everywhere.
        eta: noise that each step of ddim adds: 0 none, 1 as much as ddpm.
        variance: noise that each step of ddpm adds: small (the posterior's, or what the model learned) or large (that
            of the forward step; nearer the truth in few steps).
    """

    name: str = "ddim"
    steps: int = 50
    guidance_scale: float = 1.5
    guidance_interval: tuple[float, float] | None = None
    eta: float = 0.0
    variance: str = "small"

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"name is {self.name!r}; it must be one of {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more")
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1:
            raise ValueError(f"guidance_interval is {self.guidance_interval}; it must be [low, high] within [0, 1]")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must be in [0, 1]")
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance is {self.variance!r}; it must be small or large")
        for key, owner in (("eta", "ddim"), ("variance", "ddpm")):
            if getattr(self, key) != getattr(SamplerConfig, key) and self.name != owner:
                raise ValueError(f"{key} is {getattr(self, key)!r}, which only {owner} has; leave it out")


def trailing_timesteps(timesteps: int, steps: int) -> Tensor:
    """``steps`` timesteps from timesteps - 1 downwards, evenly spaced and ending above 0 ("trailing"), int64."""
    return (torch.linspace(timesteps, 0, steps + 1, dtype=torch.float64)[:-1].round() - 1).long()


def flow_times(timesteps: int, steps: int) -> Tensor:
    """``steps`` times of flow from ``timesteps`` (pure noise) downwards, evenly spaced and ending above 0, float64."""
    return timesteps * torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]


def _signals(process: Process, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The timesteps of a respaced diffusion, and alphas_cumprod at each and at the one after it (1 after the last)."""
    t = trailing_timesteps(process.config.timesteps, steps)
    now = process.alphas_cumprod(t)
    return t, now, torch.cat([now[1:], torch.ones_like(now[:1])])


Columns = tuple[Tensor, ...]  # t, a, b, c, d, r


def ddpm(process: Process, config: SamplerConfig) -> Columns:
    """Ancestral sampling, Ho et al. (2020), with the posterior of the respaced process."""
    t, now, after = _signals(process, config.steps)
    a, b, small, large = posterior_coefficients(now, after)
    last = after == 1  # the last step ends at x0: no noise
    d = torch.where(last, 0.0, (large if config.variance == "large" else small).sqrt())
    r = torch.zeros_like(d) if config.variance == "large" else torch.where(last, 0.0, 0.5 * torch.log(large / small))
    return t, a, b, torch.zeros_like(a), d, r


def ddim(process: Process, config: SamplerConfig) -> Columns:
    """Song et al., "Denoising Diffusion Implicit Models" (2021), equations 12 and 16."""
    t, now, after = _signals(process, config.steps)
    variance = config.eta**2 * (1 - after) / (1 - now) * (1 - now / after)
    a = ((1 - after - variance) / (1 - now)).sqrt()
    zero = torch.zeros_like(a)
    return t, a, after.sqrt() - a * now.sqrt(), zero, variance.sqrt(), zero


def dpm_solver_plus_plus(process: Process, config: SamplerConfig) -> Columns:
    """DPM-Solver++(2M), Lu et al. (2022), algorithm 2; the first and the last step are of first order."""
    t, now, after = _signals(process, config.steps)
    h = _half_log_snr(after) - _half_log_snr(now)  # infinite in the last row, and in the first of zero terminal SNR
    ratio = torch.zeros_like(h)
    ratio[1:-1] = 0.5 * h[1:-1] / h[:-2]
    step = -after.sqrt() * torch.expm1(-h)
    zero = torch.zeros_like(h)
    return t, ((1 - after) / (1 - now)).sqrt(), step * (1 + ratio), -step * ratio, zero, zero


def _half_log_snr(signal: Tensor) -> Tensor:
    return 0.5 * (signal.log() - torch.log1p(-signal))


def euler(process: Process, config: SamplerConfig) -> Columns:
    """Euler's method along the velocity of a flow."""
    t = flow_times(process.config.timesteps, config.steps)
    a = torch.cat([t[1:], torch.zeros_like(t[:1])]) / t
    zero = torch.zeros_like(a)
    return t, a, 1 - a, zero, zero, zero


def heun(process: Process, config: SamplerConfig) -> Columns:
    """Heun's method along the velocity of a flow: Euler's step, and a row that corrects it, but for the last.

    The state before Euler's step is a mix of the state after it and of its x0, so the correction needs no other memory.
    """
    t, a, b, *_ = euler(process, config)
    s = t / process.config.timesteps
    now, after = s[:-1], s[1:]
    half = (after - now) / 2
    before = 1 + half / now  # weight of the state before Euler's step
    corrected = torch.stack(
        [
            t[1:],
            half / after + before * now / after,
            -half / after,
            -half / now - before * (now / after - 1),
        ],
        dim=1,
    )
    rows = torch.stack([t, a, b, torch.zeros_like(a)], dim=1)
    pairs = torch.stack([rows[:-1], corrected], dim=1).flatten(0, 1)
    columns = torch.cat([pairs, rows[-1:]]).unbind(dim=1)
    zero = torch.zeros_like(columns[0])
    return *columns, zero, zero


SAMPLERS: dict[str, Callable[[Process, SamplerConfig], Columns]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm-solver++": dpm_solver_plus_plus,
    "euler": euler,
    "heun": heun,
}
FLOW_SAMPLERS = ("euler", "heun")


def sampler_table(config: SamplerConfig, process: Process) -> Tensor:
    """The table of ``config``, (S, 9) float64.

    Raises:
        ValueError: if the sampler is not one of this process, or takes more steps than it has timesteps.
    """
    allowed = [name for name in SAMPLERS if (name in FLOW_SAMPLERS) == process.is_flow]
    if config.name not in allowed:
        raise ValueError(
            f"name is {config.name!r}; a model trained with schedule {process.config.schedule} takes one of "
            f"{', '.join(allowed)}"
        )
    if config.steps > process.config.timesteps and not process.is_flow:
        raise ValueError(f"steps is {config.steps}; the model was trained with {process.config.timesteps} timesteps")
    t, *update = SAMPLERS[config.name](process, config)
    low, high = config.guidance_interval or (0.0, 1.0)
    share = t / process.config.timesteps
    scale = 1 + (config.guidance_scale - 1) * ((share >= low) & (share <= high)).double()
    return torch.stack([t.double(), *process.conversion(process.config.target, "x0", t), *update, scale], dim=1)


def adds_noise(table: Tensor) -> bool:
    """Whether a table draws noise after its start, so that a sample is more than a function of what it starts from."""
    *_, d, _r, _scale = table.unbind(dim=1)
    return bool(d.any())


def sample(denoiser: Denoiser, table: Tensor, x: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
    """Run a table from noise x (B, C, ...) to a sample; ``noise(step)`` gives the noise of steps 1, 2, ...

    The state stays in the precision of x whatever the denoiser computes in.
    """
    x0 = torch.zeros_like(x)
    for step, (t, ca, cb, a, b, c, d, r, scale) in enumerate(table.tolist(), start=1):
        out = denoiser(x, torch.full((len(x),), t, device=x.device), scale).to(x.dtype)
        answer, fraction = out[:, : x.shape[1]], out[:, x.shape[1] :]
        last, x0 = x0, ca * x + cb * answer
        x = a * x + b * x0 + c * last
        if d:
            deviation = d * torch.exp(r * (fraction + 1) / 2) if fraction.shape[1] else d
            x = x + deviation * noise(step)
    return x
