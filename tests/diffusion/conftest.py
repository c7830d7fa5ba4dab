"""Denoisers whose answers are exact, because the law of the data is known."""

import pytest
import torch

GAUSSIAN = ((1.0,), (1.5,), (0.5,))  # weights, means, standard deviations
MIXTURE = ((0.3, 0.7), (-1.0, 1.2), (0.3, 0.4))


def _exact_denoiser(process, law):
    weights, means, stds = (torch.tensor(values, dtype=torch.float64) for values in law)

    def denoise(x, t, scale):
        alpha, sigma = process.levels(t[:1])
        variances = (alpha * stds).square() + sigma.square()
        apart = x.double()[..., None] - alpha * means
        share = (weights.log() - 0.5 * variances.log() - 0.5 * apart.square() / variances).softmax(dim=-1)
        x0 = (share * (means + alpha * stds.square() / variances * apart)).sum(dim=-1)
        noise = (x.double() - alpha * x0) / sigma
        v = noise - x0 if process.is_flow else alpha * noise - sigma * x0
        return {"x0": x0, "epsilon": noise, "v": v}[process.config.target].to(x.dtype)

    return denoise


def _distribution(law, alpha=1.0, sigma=0.0):
    weights, means, stds = (torch.tensor(values, dtype=torch.float64) for values in law)
    parts = torch.distributions.Normal(alpha * means, ((alpha * stds).square() + sigma**2).sqrt())
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), parts)


def _flow_ends(law, x, alpha, sigma):
    """Where the probability flow takes x: in one dimension it keeps quantiles."""
    quantile, data = _distribution(law, alpha, sigma).cdf(x), _distribution(law)
    low, high = torch.full_like(x, -20), torch.full_like(x, 20)
    for _ in range(80):
        middle = (low + high) / 2
        below = data.cdf(middle) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


@pytest.fixture(autouse=True)
def _small_tensors(one_thread):
    """All tests here compute with few numbers."""


@pytest.fixture(params=[GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def law(request):
    return request.param


@pytest.fixture
def exact_denoiser():
    return _exact_denoiser


@pytest.fixture
def distribution():
    return _distribution


@pytest.fixture
def flow_ends():
    return _flow_ends
