"""The weighted error and the hybrid loss against numerical integrals, densities and closed forms."""

import math

import pytest
import torch

from voxfleet.diffusion.losses import denoising_loss, variational_bound
from voxfleet.diffusion.process import DiffusionConfig, Process

KINDS = [{}, {"schedule": "cosine"}, {"zero_terminal_snr": True}, {"schedule": "flow"}]


def draws(*shape):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()


def make(**changes):
    return Process(DiffusionConfig(**{"target": "v", **changes}))


def hybrid(process):
    """Draws of the hybrid loss: x0, noise, t, and an answer of twice the channels."""
    x0, noise = draws(5, 2, 3)
    answer, fraction = draws(5, 2, 3) * 0.7
    return x0, noise, torch.tensor([0, 1, 50, 400, process.config.timesteps - 1]), torch.cat([answer, fraction], dim=1)


@pytest.mark.parametrize("target", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("weighting", ["none", "min-snr", "v"])
def test_loss_is_the_weighted_mean_squared_error_of_the_target(target, weighting):
    process = make(target=target, weighting=weighting)
    x0, noise = draws(5, 2, 3)
    out, _ = draws(5, 2, 3) + 0.5
    t = torch.tensor([0, 10, 300, 700, 999])
    expected = [
        process.loss_weight(t)[i].item() * torch.nn.functional.mse_loss(process.target(x0, noise, t)[i], out[i]).item()
        for i in range(5)
    ]
    loss = denoising_loss(process, out, x0, noise, t)
    assert loss.shape == (5,)
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "weighting"), [*((kind, "v") for kind in KINDS), *((KINDS[i], "min-snr") for i in (0, 1, 3))]
)
def test_a_weighted_loss_is_the_same_whatever_target_says_the_same(kind, weighting):
    x0, noise = draws(4, 3)
    predicted, t = x0 + 0.3 * noise.flip(0), torch.tensor([20, 150, 600, 999])
    losses = []
    for target in ("x0", "v"):
        process = make(target=target, weighting=weighting, **kind)
        out = make(target="x0", **kind).convert(process.q_sample(x0, t, noise), predicted, t, target)
        losses.append(denoising_loss(process, out, x0, noise, t))
    assert losses[0].min() > 0
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("t", [1, 2, 300, 999])
@pytest.mark.parametrize("fraction", [-1.0, 0.3, 1.0, 1.5])
def test_bound_is_the_kl_divergence_in_bits(kind, t, fraction):
    process, time = make(**kind), torch.tensor([t])
    x0, x, predicted = torch.tensor([[0.5]]), torch.tensor([[0.8]]), torch.tensor([[0.55]])
    true_mean, small = (value.item() for value in process.posterior(x0, x, time))
    mean = process.posterior(predicted, x, time)[0].item()
    now, before = process.alphas_cumprod(torch.tensor([t, t - 1])).tolist()
    variance = small ** ((1 - fraction) / 2) * (1 - now / before) ** ((1 + fraction) / 2)
    true, learned = (
        torch.distributions.Normal(*torch.tensor(pair, dtype=torch.float64))
        for pair in ((true_mean, small**0.5), (mean, variance**0.5))
    )
    grid = true_mean + small**0.5 * torch.linspace(-12, 12, 20001, dtype=torch.float64)
    nats = torch.trapezoid(true.log_prob(grid).exp() * (true.log_prob(grid) - learned.log_prob(grid)), grid).item()
    bits = variational_bound(process, predicted, torch.tensor([[fraction]]), x0, x, time)
    assert nats >= 0
    assert bits.item() == pytest.approx(nats / math.log(2), rel=2e-4, abs=2e-6)


@pytest.mark.parametrize("fraction", [-1.0, 0.2, 1.0])
def test_bound_at_the_last_step_is_the_density_of_the_data_in_bits(fraction):
    process, t = make(), torch.tensor([0, 0])
    x0, x, predicted = torch.tensor([[0.5], [0.1]]), torch.zeros(2, 1), torch.tensor([[0.51], [0.1]])
    # the posterior's variance is 0 at t = 0: that of t = 1 stands in
    small = process.posterior(x0, x, t + 1)[1][0].item()
    variance = small ** ((1 - fraction) / 2) * 1e-4 ** ((1 + fraction) / 2)
    expected = -torch.distributions.Normal(predicted, variance**0.5).log_prob(x0)[:, 0] / math.log(2)
    bits = variational_bound(process, predicted, torch.full((2, 1), fraction), x0, x, t)
    torch.testing.assert_close(bits, expected, rtol=1e-4, atol=1e-4)


def test_bound_is_the_mean_over_the_numbers_of_a_sample():
    process, (x0, x) = make(), draws(4, 3)
    predicted, fraction, t = x0 + 0.1, torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 0, 9, 800])
    whole = variational_bound(process, predicted, fraction, x0, x, t)
    parts = [variational_bound(process, *(v[:, i : i + 1] for v in (predicted, fraction, x0, x)), t) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0))


@pytest.mark.parametrize(("deviation", "expected"), [(0.0, -1.0), (0.1, None), (1.0, 1.0)])
@pytest.mark.parametrize("t", [3, 30, 100])
def test_the_best_variance_is_the_posteriors_for_a_point_and_beta_for_standard_normal_data(deviation, expected, t):
    """Ho et al. (2020), section 3.2; of other Gaussian data it lies between the two."""
    process = make()
    signal = process.alphas_cumprod(torch.tensor(t)).item()
    variance = deviation**2 * (1 - signal) / (signal * deviation**2 + 1 - signal)  # of x0 given x_t
    # two equally likely x0 with the exact variance make the mean of their bounds the expected bound
    x, predicted = torch.full((2, 1), 0.3).double(), torch.full((2, 1), 0.4).double()
    x0 = predicted + variance**0.5 * torch.tensor([[-1.0], [1.0]])
    fractions = torch.linspace(-1.5, 1.5, 601).double()
    bounds = [
        variational_bound(process, predicted, f.expand(2, 1), x0, x, torch.tensor([t, t])).mean() for f in fractions
    ]
    best = fractions[torch.stack(bounds).argmin()].item()
    if expected is None:
        assert -0.995 < best < 0.995
    else:
        assert best == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("target", ["epsilon", "v", "x0"])
def test_hybrid_loss_adds_a_thousandth_of_the_bound_for_each_timestep(target):
    for timesteps in (1000, 500):
        process = make(target=target, timesteps=timesteps)
        x0, noise, t, out = hybrid(process)
        x = process.q_sample(x0, t, noise)
        bound = variational_bound(process, process.convert(x, out[:, :2], t, "x0"), out[:, 2:], x0, x, t)
        simple = denoising_loss(process, out[:, :2], x0, noise, t)
        expected = simple + 1e-3 * timesteps * bound
        torch.testing.assert_close(denoising_loss(process, out, x0, noise, t), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_bound_trains_the_variance_and_nothing_else(kind):
    process = make(**kind)
    x0, noise, t, out = hybrid(process)
    out.requires_grad_()
    (gradient,) = torch.autograd.grad(denoising_loss(process, out, x0, noise, t).sum(), out)
    (simple,) = torch.autograd.grad(denoising_loss(process, out[:, :2], x0, noise, t).sum(), out)
    assert torch.equal(gradient[:, :2], simple[:, :2])
    assert (gradient[:, :2] != 0).all()
    assert gradient.isfinite().all()
    assert (gradient[:, 2:].flatten(1).abs().amax(dim=1) > 0).all()


def test_losses_are_float32_where_the_network_answers_in_bfloat16():
    process = make()
    x0, noise, t, out = hybrid(process)
    for answer in (out, out[:, :2]):
        loss = denoising_loss(process, answer.bfloat16(), x0, noise, t)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, denoising_loss(process, answer.bfloat16().float(), x0, noise, t))
