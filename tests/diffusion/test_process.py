"""The process and its samplers against closed forms and MONAI's DDIM."""

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler

from voxfleet.diffusion.guidance import guided
from voxfleet.diffusion.noise import sampling_noise
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import SAMPLERS, SamplerConfig, ddim, sample, sampler_table, trailing_timesteps

MEAN, VARIANCE = 1.5, 0.25


def gaussian_denoiser(process):
    """The exact answer for data N(MEAN, VARIANCE), of whichever target the process has."""

    def denoise(x, t):
        signal = process.alphas_cumprod[t[0]]
        gain = signal.sqrt() * VARIANCE / (signal * VARIANCE + 1 - signal)
        x0 = MEAN + gain * (x - signal.sqrt() * MEAN)
        return (x0 if process.config.target == "x0" else (x - signal.sqrt() * x0) / (1 - signal).sqrt()).float()

    return denoise


def test_q_sample_has_the_mean_and_variance_of_the_process():
    process = Process(DiffusionConfig())
    t = torch.full((20000,), 300)
    x = process.q_sample(torch.full((20000, 1), 2.0), t, sampling_noise(torch.arange(20000), 0, (1,)))
    signal = process.alphas_cumprod[300]
    assert x.mean().item() == pytest.approx(2 * signal.sqrt().item(), abs=0.03)
    assert x.var().item() == pytest.approx(1 - signal.item(), rel=0.05)


@pytest.mark.parametrize("target", ["epsilon", "x0"])
def test_x0_is_recovered_from_the_target(target):
    process = Process(DiffusionConfig(target=target))
    x0, noise, t = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([5, 400, 900])
    ca, cb = process.x0_coefficients(t)
    found = ca[:, None] * process.q_sample(x0, t, noise) + cb[:, None] * process.target(x0, noise)
    torch.testing.assert_close(found.float(), x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", ["epsilon", "x0"])
def test_ddim_converges_to_the_law_of_the_data_at_first_order(target):
    process = Process(DiffusionConfig(target=target))
    start = sampling_noise(torch.arange(4000), 0, (1,))
    errors = []
    for steps in (25, 50, 100):
        x = sample(gaussian_denoiser(process), ddim(process, steps), start, lambda step: torch.zeros(1))
        errors.append(abs(x.std().item() - VARIANCE**0.5))
        assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert errors[2] < errors[1] < errors[0]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.5)


def test_ddim_agrees_with_monai_where_steps_divide_the_timesteps():
    """MONAI steps to t - T // n; with leading timesteps shifted to trailing ones both walk the same grid."""
    process, steps = Process(DiffusionConfig()), 50
    theirs = DDIMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=False)
    theirs.set_timesteps(steps)
    table = ddim(process, steps)
    assert trailing_timesteps(1000, steps).tolist() == [999 - 20 * i for i in range(steps)]
    x = y = torch.randn(2, 3, 4)
    for row in table:
        out = torch.tanh(y)
        y, _ = theirs.step(out, int(row[0]), y)
    x = sample(lambda v, t: torch.tanh(v), table, x, lambda step: torch.zeros(1))
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)  # values reach hundreds, in float32


@pytest.mark.parametrize("name", SAMPLERS)
def test_tables_are_finite_and_end_at_the_clean_sample(name):
    table = sampler_table(SamplerConfig(name=name, steps=7), Process(DiffusionConfig()))
    assert table.shape == (7, 7)
    assert table.dtype == torch.float64
    assert table.isfinite().all()
    assert table[-1, 3:].tolist() == [0, 1, 0, 0]  # x becomes x0, without noise


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ValueError, match="steps is 31"):
        sampler_table(SamplerConfig(steps=31), Process(DiffusionConfig(timesteps=30)))


def test_guidance_extrapolates_from_the_null_label_on_every_channel():
    def model(x, t, y):
        return x * 0 + y.float().reshape(-1, 1)

    x, t, labels = torch.zeros(2, 4), torch.zeros(2), torch.tensor([0, 1])
    assert guided(model, labels, 3.0, null=2)(x, t).tolist() == [[-4.0] * 4, [-1.0] * 4]  # u + 3 (c - u)
    assert guided(model, labels, 1.0, null=2)(x, t).tolist() == [[0.0] * 4, [1.0] * 4]


@pytest.mark.parametrize(
    ("config", "changes", "word"),
    [
        (DiffusionConfig, {"schedule": "cubic"}, "linear"),
        (DiffusionConfig, {"target": "x1"}, "epsilon, x0"),
        (DiffusionConfig, {"timesteps": 5}, "timesteps is 5"),
        (SamplerConfig, {"name": "plms"}, "ddim"),
        (SamplerConfig, {"steps": 0}, "steps is 0"),
    ],
)
def test_bad_values_list_what_is_allowed(config, changes, word):
    with pytest.raises(ValueError, match=word):
        config(**changes)
