"""Samplers with exact denoisers: where they end, at which order they get there, and the law of what they draw."""

import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import FLOW_SAMPLERS, SamplerConfig, sample, sampler_table

DETERMINISTIC = {"ddim": 1, "dpm-solver++": 2, "euler": 1, "heun": 2}  # name: order
SCHEDULES = [{}, {"schedule": "cosine"}, {"zero_terminal_snr": True}]


def make(name="ddpm", target="v", **changes):
    if name in FLOW_SAMPLERS:
        changes["schedule"] = "flow"
    return Process(DiffusionConfig(target=target, **changes))


def table_of(process, name, steps, **changes):
    return sampler_table(SamplerConfig(name=name, steps=steps, **changes), process)


def silent(step):
    raise AssertionError(f"step {step} of a deterministic sampler asks for noise")


def ends(exact_denoiser, law, process, name, steps, x):
    return sample(exact_denoiser(process, law), table_of(process, name, steps), x, silent)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, changes) for name in ("ddim", "dpm-solver++") for changes in SCHEDULES),
        *((name, {}) for name in FLOW_SAMPLERS),
    ],
)
def test_deterministic_samplers_reach_the_ends_of_the_exact_flow_at_their_order(
    exact_denoiser, flow_ends, law, name, changes
):
    process = make(name, timesteps=1024, **changes)
    x = torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None]
    alpha, sigma = process.levels(torch.tensor(1024 if process.is_flow else 1023))
    expected = flow_ends(law, x, alpha.item(), sigma.item())
    # beyond this range the first-order last step, at the cleanest timestep, leaves DPM-Solver++ a floor near 1e-4
    errors = [(ends(exact_denoiser, law, process, name, n, x) - expected).abs().mean().item() for n in (16, 128)]
    order = math.log2(errors[0] / errors[1]) / 3
    assert order == pytest.approx(DETERMINISTIC[name], abs=0.1 if name != "dpm-solver++" else 0.5)
    assert errors[1] < {1: 0.02, 2: 0.001}[DETERMINISTIC[name]]


def test_a_gaussian_flow_ends_at_its_closed_form(flow_ends):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    closed = 1.5 + 0.5 * (x - 0.6 * 1.5) / (0.36 * 0.25 + 0.64) ** 0.5
    torch.testing.assert_close(flow_ends(((1.0,), (1.5,), (0.5,)), x, 0.6, 0.8), closed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_target_reaches_the_same_ends(exact_denoiser, law, name):
    targets = ("v", "x0") if name in FLOW_SAMPLERS else ("v", "x0", "epsilon")
    x = torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None]
    found = [ends(exact_denoiser, law, make(name, target, timesteps=1024), name, 32, x) for target in targets]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_draw_the_law_of_the_data(exact_denoiser, distribution, law, name):
    quantiles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    x = ends(exact_denoiser, law, make(name), name, 100, torch.special.ndtri(quantiles)[:, None])
    assert x.mean().item() == pytest.approx(distribution(law).mean.item(), abs=0.03)
    assert x.std().item() == pytest.approx(distribution(law).stddev.item(), rel=0.04)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_draws_the_law_of_the_data(exact_denoiser, distribution, law, variance):
    process, generator = make(), torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=generator)
    table = table_of(process, "ddpm", 1000, variance=variance)
    x = sample(exact_denoiser(process, law), table, x, lambda step: torch.randn(4000, 1, generator=generator))
    assert x.mean().item() == pytest.approx(distribution(law).mean.item(), abs=0.05)
    assert x.std().item() == pytest.approx(distribution(law).stddev.item(), rel=0.05)


@pytest.mark.parametrize(("name", "changes"), [("ddpm", {}), ("ddpm", {"variance": "large"}), ("ddim", {"eta": 0.5})])
def test_moments_of_stochastic_samplers_converge_at_first_order(exact_denoiser, name, changes):
    """With Gaussian data each step is linear, so that mean and variance follow without a draw."""
    process, errors = make(timesteps=1024), []
    denoise = exact_denoiser(process, ((1.0,), (1.5,), (0.5,)))
    for steps in (128, 256, 512):
        mean, variance = 0.0, 1.0
        for t, ca, cb, a, b, c, d, _, _ in table_of(process, name, steps, **changes).tolist():
            at = denoise(torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([t, t]), 1.0)[:, 0].tolist()
            slope = a + b * (ca + cb * (at[1] - at[0]))
            mean, variance = slope * mean + b * cb * at[0], slope**2 * variance + d**2
            assert c == 0
        errors.append(abs(variance - 0.25))
        assert mean == pytest.approx(1.5, abs=0.03)
    assert errors[2] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("steps", [7, 50, 300, 1000])
@pytest.mark.parametrize("changes", SCHEDULES)
def test_respaced_ddpm_steps_from_one_noise_level_to_the_next(changes, steps):
    """Where x0 is known, a step from q(x_t) must give q at the next timestep of the table."""
    process = make(target="x0", **changes)
    table = table_of(process, "ddpm", steps)
    now = process.alphas_cumprod(table[:, 0])
    after = torch.cat([now[1:], torch.ones(1)])
    a, b, d = table[:, 3], table[:, 4], table[:, 6]
    torch.testing.assert_close(a.square() * (1 - now) + d.square(), 1 - after, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a * now.sqrt() + b, after.sqrt(), rtol=1e-9, atol=1e-12)


def test_monai_respaces_the_timesteps_of_ddpm_but_not_its_noise():
    """The reason for our own sampler: MONAI's step always ends at t - 1, so it keeps the noise of the level it left."""
    process, generator = make(target="x0"), torch.Generator().manual_seed(0)
    theirs = DDPMScheduler(num_train_timesteps=1000, clip_sample=False, prediction_type="sample")
    theirs.set_timesteps(50)
    t, after = theirs.timesteps[-6:-4].tolist()
    x0 = torch.full((20000, 1), 0.5)
    x = process.q_sample(x0, torch.full((20000,), t), torch.randn(20000, 1, generator=generator))
    found = theirs.step(x0, t, x, generator=generator)[0].var().item()
    assert found == pytest.approx(1 - process.alphas_cumprod(torch.tensor(t - 1)).item(), rel=0.05)
    assert found > 1.2 * (1 - process.alphas_cumprod(torch.tensor(after)).item())
