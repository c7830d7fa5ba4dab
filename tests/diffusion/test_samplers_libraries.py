"""Samplers step for step against diffusers and MONAI, whose float32 levels are replaced by ours in float64."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from monai.networks import schedulers as monai

from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import SamplerConfig, sample, sampler_table

TARGETS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
KINDS = [
    ({"target": "epsilon"}, "linear epsilon"),
    ({"target": "v"}, "linear v"),
    ({"target": "x0"}, "linear x0"),
    ({"target": "v", "schedule": "cosine"}, "cosine v"),
    ({"target": "v", "zero_terminal_snr": True}, "zero terminal v"),
    ({"target": "x0", "zero_terminal_snr": True}, "zero terminal x0"),
]
kinds = pytest.mark.parametrize("changes", [c for c, _ in KINDS], ids=[name for _, name in KINDS])


def toy(x, t, scale=1.0):
    return torch.tanh(x + 0.3 * torch.cos(torch.as_tensor(t).flatten()[0] / 200))


def start():
    return torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def noises():
    """The numbers that a scheduler draws from the generator of this seed, in its order."""
    generator = torch.Generator().manual_seed(3)
    return lambda step: torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)


def ours(process, rows=None, **sampler):
    return sample(toy, sampler_table(SamplerConfig(**sampler), process)[:rows], start(), noises())


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def diffusers_scheduler(kind, process, steps, **changes):
    scheduler = kind(prediction_type=TARGETS[process.config.target], timestep_spacing="trailing", **changes)
    scheduler.alphas_cumprod = process.alphas_cumprod(torch.arange(1000))
    scheduler.set_timesteps(steps)
    return scheduler


@kinds
@pytest.mark.parametrize("steps", [20, 50, 1000])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_agrees_with_diffusers(changes, steps, variance):
    process = Process(DiffusionConfig(**changes))
    theirs = diffusers_scheduler(DDPMScheduler, process, steps, clip_sample=False, variance_type=f"fixed_{variance}")
    # diffusers adds the noise of "large" after the last step too, unless it is at timestep 0
    rows = steps - 1 if variance == "large" else steps
    x, generator = start(), torch.Generator().manual_seed(3)
    for t in theirs.timesteps[:rows]:
        x = theirs.step(toy(x, t), int(t), x, generator=generator).prev_sample
    close(ours(process, rows, name="ddpm", steps=steps, variance=variance), x)


@kinds
@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_agrees_with_diffusers(changes, steps, eta):
    process = Process(DiffusionConfig(**changes))
    theirs = diffusers_scheduler(DDIMScheduler, process, steps, clip_sample=False)
    x, generator = start(), torch.Generator().manual_seed(3)
    for t in theirs.timesteps:
        x = theirs.step(toy(x, t), int(t), x, eta=eta, generator=generator).prev_sample
    close(ours(process, name="ddim", steps=steps, eta=eta), x)


@kinds
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_dpm_solver_agrees_with_diffusers(monkeypatch, changes, steps):
    process = Process(DiffusionConfig(**changes))
    theirs = diffusers_scheduler(DPMSolverMultistepScheduler, process, steps)
    if process.config.zero_terminal_snr:  # theirs cannot start at an infinite sigma and takes this instead
        theirs.alphas_cumprod[-1] = 2**-24
        theirs.set_timesteps(steps)
        monkeypatch.setattr(process, "alphas_cumprod", lambda t: theirs.alphas_cumprod[t.long()])
    x = start().float()
    for t in theirs.timesteps:
        x = theirs.step(toy(x, t), t, x).prev_sample
    close(ours(process, name="dpm-solver++", steps=steps), x.double(), 2e-4)  # theirs works in float32


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("target", ["v", "x0"])
@pytest.mark.parametrize(
    ("name", "kind"), [("euler", FlowMatchEulerDiscreteScheduler), ("heun", FlowMatchHeunDiscreteScheduler)]
)
def test_flow_samplers_agree_with_diffusers(name, kind, target, steps):
    process = Process(DiffusionConfig(schedule="flow", target=target))
    theirs = kind()
    theirs.sigma_max, theirs.sigma_min = 1.0, 1 / steps  # the same grid; by default it ends with a step of 0.001
    theirs.set_timesteps(steps)
    x = start()
    for t in theirs.timesteps:
        out = toy(x, t)
        x = theirs.step(out if target == "v" else (x - out) * 1000 / t, t, x).prev_sample.double()
    close(ours(process, name=name, steps=steps), x, 1e-5)  # theirs works in float32


@pytest.mark.parametrize("target", TARGETS)
def test_ddpm_of_all_timesteps_agrees_with_monai(target):
    process = Process(DiffusionConfig(target=target))
    theirs = monai.DDPMScheduler(num_train_timesteps=1000, clip_sample=False, prediction_type=TARGETS[target])
    theirs.alphas_cumprod = process.alphas_cumprod(torch.arange(1000))
    theirs.alphas = theirs.alphas_cumprod / torch.cat([torch.ones(1), theirs.alphas_cumprod[:-1]])
    theirs.betas = 1 - theirs.alphas
    x, generator = start(), torch.Generator().manual_seed(3)
    for t in theirs.timesteps.tolist():
        x, _ = theirs.step(toy(x, t), t, x, generator=generator)
    close(ours(process, name="ddpm", steps=1000), x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_agrees_with_monai_where_steps_divide_the_timesteps(target, eta):
    """MONAI steps to t - T // n; from trailing timesteps both walk the same grid."""
    process = Process(DiffusionConfig(target=target))
    theirs = monai.DDIMScheduler(num_train_timesteps=1000, clip_sample=False, prediction_type=TARGETS[target])
    theirs.alphas_cumprod = process.alphas_cumprod(torch.arange(1000))
    theirs.set_timesteps(50)
    x, generator = start(), torch.Generator().manual_seed(3)
    for t in range(999, -1, -20):
        x, _ = theirs.step(toy(x, t), t, x, eta=eta, generator=generator)
    close(ours(process, name="ddim", steps=50, eta=eta), x)
