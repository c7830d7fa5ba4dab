"""Training losses: the weighted error of the target, and the variational bound that a learned variance needs.

Letters: B batch, C channels.
"""

import math

import torch
from torch import Tensor

from voxfleet.diffusion.process import Process, posterior_coefficients, spread

_BOUND_WEIGHT = 1e-3  # lambda of Improved DDPM, on the bound summed over all timesteps


def denoising_loss(process: Process, out: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Loss (B,) of the answer ``out`` to x0 (B, C, ...) noised to t (B,) with ``noise``.

    Where ``out`` holds 2 C channels, the second half is the variance (see ``variational_bound``) and the loss is the
    hybrid of Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), equation 16.
    """
    answer, fraction = out.float().split(x0.shape[1], dim=1) if out.shape[1] > x0.shape[1] else (out.float(), None)
    error = (answer - process.target(x0, noise, t)).square().flatten(1).mean(dim=1)
    loss = process.loss_weight(t).float() * error
    if fraction is None:
        return loss
    x = process.q_sample(x0, t, noise)
    # the bound trains the variance alone: its gradient with respect to the mean is too noisy
    bound = variational_bound(process, process.convert(x, answer.detach(), t, "x0"), fraction, x0, x, t)
    return loss + _BOUND_WEIGHT * process.config.timesteps * bound


def variational_bound(
    process: Process, predicted: Tensor, fraction: Tensor, x0: Tensor, x: Tensor, t: Tensor
) -> Tensor:
    """One term of the bound, (B,), in bits a number: the KL divergence of a denoising step from the true one.

    The step has the posterior's mean for the ``predicted`` x0 and the learned variance; at t = 0 the term is the
    negative log-density of x0 under the step (latents are continuous).
    """
    now, after = process.neighbours(t)
    a, b, _, _ = posterior_coefficients(now, after)
    true_mean, mean = (spread(a, x) * x + spread(b, x) * clean for clean in (x0, predicted))
    low, high = log_variances(process, t)
    log_variance = spread(low, x) + (fraction + 1) / 2 * spread(high - low, x)
    terms = torch.where(
        (t == 0).reshape(-1, *[1] * (x.dim() - 1)),
        0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean).square() * torch.exp(-log_variance)),
        normal_kl(true_mean, spread(low, x), mean, log_variance),
    )
    return terms.flatten(1).mean(dim=1) / math.log(2)


def log_variances(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms, (B,) float64, of the posterior's variance and of beta: a learned variance lies between them.

    The posterior's variance is 0 at t = 0; there that of t = 1 stands in, as in Improved DDPM.
    """
    _, _, low, _ = posterior_coefficients(*process.neighbours(t.clamp(min=1)))
    _, _, _, high = posterior_coefficients(*process.neighbours(t))
    return low.log(), high.log()


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of N(mean1, ...) from N(mean2, ...), element by element, in nats."""
    ratio = torch.exp(log_variance1 - log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio - 1 + (mean1 - mean2).square() * torch.exp(-log_variance2))
