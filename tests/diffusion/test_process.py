"""Schedules, the forward process, targets and loss weights against closed forms and other libraries."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from monai.networks.schedulers import DDPMScheduler
from scipy import special, stats

from voxfleet.diffusion.noise import sampling_noise
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.schedules import cosine_betas, linear_betas, zero_terminal_snr

KINDS = {
    "linear": {},
    "cosine": {"schedule": "cosine"},
    "zero terminal": {"zero_terminal_snr": True},
    "zero terminal cosine": {"schedule": "cosine", "zero_terminal_snr": True},
    "flow": {"schedule": "flow"},
}
PAIRS = [
    (kind, target)
    for kind in KINDS
    for target in ("epsilon", "v", "x0")
    if target != "epsilon" or kind in ("linear", "cosine")
]


def make(kind="linear", target="v", **changes):
    return Process(DiffusionConfig(**{**KINDS[kind], "target": target, **changes}))


def draws(samples=6):
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(2, samples, 4, dtype=torch.float64, generator=generator)


def test_linear_betas_keep_the_signal_whatever_the_number_of_timesteps():
    assert linear_betas(1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    ends = [torch.log1p(-linear_betas(timesteps)).sum().item() for timesteps in (1000, 4000, 16000)]
    assert ends == pytest.approx([ends[0]] * 3, rel=0.01)


def test_cosine_schedule_has_the_closed_form_and_its_limit():
    betas = cosine_betas(1000)
    assert betas.max() == betas[-1] == 0.999
    assert betas[-2] < 0.999
    signal = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    found = make("cosine").alphas_cumprod(torch.arange(999))
    torch.testing.assert_close(found, torch.tensor(signal[1:1000]).double() / signal[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["zero terminal", "zero terminal cosine"])
def test_zero_terminal_snr_ends_at_nothing_but_noise_and_starts_as_before(kind):
    rescaled, plain = make(kind), make(kind, zero_terminal_snr=False)
    ends = rescaled.alphas_cumprod(torch.tensor([0, 999]))
    assert ends[1] == 0
    assert ends[0].item() == pytest.approx(plain.alphas_cumprod(torch.tensor(0)).item(), rel=1e-12)


def test_zero_terminal_snr_agrees_with_diffusers():
    betas = linear_betas(1000)
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    torch.testing.assert_close(zero_terminal_snr(torch.cumprod(1 - betas, dim=0)), theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("kind", "t"), [("linear", 300), ("cosine", 700), ("zero terminal", 999), ("flow", 640.5)])
def test_q_sample_has_the_mean_and_variance_of_the_process(kind, t):
    process = make(kind)
    noise = sampling_noise(torch.arange(20000), 0, (1,))
    x = process.q_sample(torch.full((20000, 1), 2.0), torch.full((20000,), t), noise)
    betas = {"cosine": cosine_betas}.get(kind, linear_betas)(1000)
    signal = 0.0 if kind == "zero terminal" else torch.cumprod(1 - betas, dim=0)[int(t)].item()
    alpha, variance = (1 - 0.6405, 0.6405**2) if kind == "flow" else (signal**0.5, 1 - signal)
    assert x.mean().item() == pytest.approx(2 * alpha, abs=0.03)
    assert x.var().item() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(("kind", "target"), PAIRS)
def test_every_target_is_recovered_from_every_other(kind, target):
    process, (x0, noise) = make(kind, target), draws()
    t = torch.tensor([0, 5, 400, 900, 998, 999]) + (0.5 if kind == "flow" else 0)
    x, out = process.q_sample(x0, t, noise), process.target(x0, noise, t)
    for to in (to for at, to in PAIRS if at == kind):
        expected = make(kind, to).target(x0, noise, t)
        torch.testing.assert_close(process.convert(x, out, t, to), expected, rtol=1e-5, atol=1e-3)


def test_targets_are_what_they_are_called():
    x0, noise = draws()
    t = torch.tensor([0, 5, 400, 900, 998, 999])
    assert torch.equal(make(target="epsilon").target(x0, noise, t), noise)
    assert torch.equal(make(target="x0").target(x0, noise, t), x0)
    assert torch.equal(make("flow").target(x0, noise, t), noise - x0)


@pytest.mark.parametrize("kind", KINDS)
def test_v_is_the_derivative_of_the_path(kind):
    process, (x0, noise) = make(kind, timesteps=8000), draws(3)
    t, step = torch.tensor([800, 4000, 7200]), 10
    after, before = (process.q_sample(x0, at, noise) for at in (t + step, t - step))
    alpha, sigma = process.levels(torch.stack([t + step, t - step]))
    time = sigma if process.is_flow else torch.atan2(sigma, alpha)
    torch.testing.assert_close(
        (after - before) / (time[0] - time[1])[:, None], process.target(x0, noise, t), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("t", [1, 40, 500, 999])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_posterior_is_bayes_rule(schedule, t):
    beta = {"linear": linear_betas, "cosine": cosine_betas}[schedule](1000)
    before = torch.cumprod(1 - beta, dim=0)[t - 1]
    x0, x = 0.7, -0.4
    grid = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    step = -0.5 * (x - (1 - beta[t]).sqrt() * grid).square() / beta[t]
    density = (step - 0.5 * (grid - before.sqrt() * x0).square() / (1 - before)).softmax(dim=0)
    mean = (density * grid).sum()
    variance = (density * (grid - mean).square()).sum()
    found, found_variance = make(schedule).posterior(torch.tensor([[x0]]), torch.tensor([[x]]), torch.tensor([t]))
    assert found.item() == pytest.approx(mean.item(), abs=1e-6)
    assert found_variance.item() == pytest.approx(variance.item(), rel=1e-6)


def test_posterior_agrees_with_monai_and_is_x0_at_the_end():
    theirs, process = DDPMScheduler(num_train_timesteps=1000, clip_sample=False), make()
    theirs.betas = linear_betas(1000)  # theirs are float32
    theirs.alphas, theirs.alphas_cumprod = 1 - theirs.betas, process.alphas_cumprod(torch.arange(1000))
    x0, x = draws(4)
    t = torch.tensor([0, 1, 350, 999])
    mean, variance = process.posterior(x0, x, t)
    for i in range(4):
        torch.testing.assert_close(mean[i], theirs._get_mean(int(t[i]), x0[i], x[i]), rtol=1e-6, atol=1e-6)
        assert variance[i].item() == pytest.approx(theirs._get_variance(int(t[i])).item(), rel=1e-9, abs=1e-15)
    torch.testing.assert_close(mean[0], x0[0], rtol=1e-9, atol=1e-9)
    assert variance[0] == 0


def test_timesteps_of_diffusion_are_whole_and_equally_likely():
    t = make().draw_timesteps((torch.arange(50000) + 0.5).double() / 50000)
    assert t.dtype == torch.int64
    assert torch.bincount(t).tolist() == [50] * 1000
    extremes = torch.tensor([0.5, 2**32 - 0.5], dtype=torch.float64) * 2**-32  # of keyed_uniform
    assert make().draw_timesteps(extremes).tolist() == [0, 999]


@pytest.mark.parametrize("density", ["uniform", "logit-normal"])
def test_times_of_flow_are_real_and_follow_their_density(density):
    process = make("flow", time_density=density)
    uniform = torch.rand(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = process.draw_timesteps(uniform).numpy() / 1000
    assert 0 < s.min() < s.max() < 1
    assert len(set(s.tolist())) == len(s)
    normal = special.logit(s) if density == "logit-normal" else stats.norm.ppf(s)
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    extremes = process.draw_timesteps(torch.tensor([0.5, 2**32 - 0.5], dtype=torch.float64) * 2**-32)
    assert 0 < extremes[0] < extremes[1] < 1000


T = torch.arange(0, 1000, 37)


@pytest.mark.parametrize(
    ("target", "published"),
    [
        ("x0", lambda snr: snr.clamp(max=5)),
        ("epsilon", lambda snr: snr.clamp(max=5) / snr),
        ("v", lambda snr: snr.clamp(max=5) / (snr + 1)),
    ],
)
def test_min_snr_has_the_published_weights(target, published):
    process = make(target=target, weighting="min-snr")
    signal = process.alphas_cumprod(T)
    torch.testing.assert_close(process.loss_weight(T), published(signal / (1 - signal)), rtol=1e-10, atol=0)


def test_min_snr_gamma_is_the_limit_of_the_weight():
    weights = [make(target="x0", weighting="min-snr", min_snr_gamma=gamma).loss_weight(T).max() for gamma in (2, 7)]
    assert weights == [2, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_weighting_v_leaves_an_error_of_v_as_it_is(kind):
    process = make(kind, weighting="v")
    sigma, weight = process.levels(T)[1], process.loss_weight(T)
    torch.testing.assert_close(weight[sigma >= 0.05], torch.ones_like(weight[sigma >= 0.05]), rtol=1e-10, atol=0)
    assert (weight[sigma < 0.05] < 1).all()
    assert make(kind).loss_weight(T).tolist() == [1] * len(T)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_limit_the_clean_end_of_x0(kind):
    weight = make(kind, target="x0", weighting="v").loss_weight(T + (0.5 if kind == "flow" else 0))
    assert weight.isfinite().all()
    assert weight.max() <= 400.001  # 1 / 0.05 ** 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "cubic"}, r"schedule is 'cubic'; it must be one of linear, cosine, flow"),
        ({"target": "x1"}, r"target is 'x1'; it must be one of epsilon, v, x0"),
        ({"weighting": "snr"}, r"weighting is 'snr'; it must be one of none, min-snr, v"),
        ({"time_density": "beta"}, r"time_density is 'beta'; it must be one of uniform, logit-normal"),
        ({"timesteps": 20}, r"timesteps is 20; it must be at least 21"),
        ({"timesteps": 1, "schedule": "cosine"}, r"timesteps is 1; it must be at least 2"),
        ({"min_snr_gamma": 0}, r"min_snr_gamma is 0; it must be above 0"),
        ({"time_density": "logit-normal"}, r"time_density is 'logit-normal'.*use uniform"),
        ({"schedule": "flow", "target": "v", "zero_terminal_snr": True}, r"zero_terminal_snr is true.*leave it false"),
        ({"zero_terminal_snr": True}, r"target is 'epsilon'.*use v or x0"),
        ({"schedule": "flow"}, r"target is 'epsilon'.*use v or x0"),
        ({"zero_terminal_snr": True, "target": "v", "weighting": "min-snr"}, r"weighting is 'min-snr'.*use v"),
    ],
)
def test_bad_values_are_refused_with_a_remedy(changes, words):
    with pytest.raises(ValueError, match=words):
        DiffusionConfig(**changes)


@pytest.mark.parametrize(("schedule", "least"), [("linear", 21), ("cosine", 2)])
def test_the_fewest_timesteps_still_make_a_process(schedule, least):
    signal = make(schedule=schedule, timesteps=least).alphas_cumprod(torch.arange(least))
    assert ((signal > 0) & (signal < 1)).all()
    assert (signal.diff() < 0).all()
