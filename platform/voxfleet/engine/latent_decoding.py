"""What an autoencoder makes of latents: its range, what the posterior's noise does, strips from one latent to another.

Letters: n volumes, C channels, d/h/w voxels of a latent, D/H/W of a volume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor

from voxfleet.config.visualisation import LatentsConfig
from voxfleet.diffusion.noise import sampling_noise
from voxfleet.engine.cluster import gpus_per_worker, ray_errors
from voxfleet.engine.interpolate import between_subjects
from voxfleet.errors import UserError
from voxfleet.metrics.image import psnr
from voxfleet.models import vae
from voxfleet.packages import Autoencoder, load_autoencoder

MARGIN = 0.05  # beyond [0, 1]


@dataclass(frozen=True)
class Task:
    """What is decoded.

    Attributes:
        mu, logvar: of the latents whose noise is looked at, (n, C, d, h, w).
        ends: of each strip by its name, (2, C, d, h, w).
        mean, std: of each channel.
    """

    mu: np.ndarray
    logvar: np.ndarray
    ends: Mapping[str, np.ndarray]
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Decoded:
    """What came of it.

    Attributes:
        means, draws: volumes (n, D, H, W) of the posteriors' means, and of a draw of each.
        psnr: between the two, (n,) dB.
        low, high: smallest and largest value that the decoder gave for the means, before it was clamped to [0, 1].
        outside: share of their voxels that lay beyond [0, 1] by more than MARGIN.
        strips: volumes (points, D, H, W) of each strip.
    """

    means: np.ndarray
    draws: np.ndarray
    psnr: np.ndarray
    low: float
    high: float
    outside: float
    strips: dict[str, np.ndarray]


def decode(config: LatentsConfig, task: Task) -> Decoded:
    """Decode it where the processors are.

    Raises:
        UserError: if a volume is not finite.
    """
    gpus = gpus_per_worker(config.resources)
    remote = _decode.options(num_cpus=config.resources.cpus_per_worker, num_gpus=gpus)
    with ray_errors():
        decoded: Decoded = ray.get(remote.remote(config, task, "cuda" if gpus else "cpu"))
    if not all(np.isfinite(found).all() for found in (decoded.means, decoded.draws, *decoded.strips.values())):
        raise UserError(f"{config.autoencoder} decodes latents of {config.data} to volumes that are not finite")
    return decoded


@ray.remote(max_calls=1)  # threads and memory of the process are its own
def _decode(config: LatentsConfig, task: Task, device: str) -> Decoded:
    torch.set_num_threads(config.resources.cpus_per_worker)
    assert config.autoencoder
    return decoded_by(load_autoencoder(config.autoencoder, device), config, task, device)


def decoded_by(autoencoder: Autoencoder, config: LatentsConfig, task: Task, device: str) -> Decoded:
    """``decode`` by an autoencoder that is loaded."""

    def volumes(latents: Tensor) -> Tensor:
        return torch.cat([_unclamped(autoencoder, part.to(device)) for part in latents.split(config.batch_size)])

    mu, logvar = (torch.from_numpy(values.astype(np.float32)) for values in (task.mu, task.logvar))
    eps = sampling_noise(torch.arange(len(mu)) + config.seed, 0, tuple(mu.shape[1:]))
    raw = volumes(mu)
    means, draws = raw.clamp(0, 1), volumes(mu + (logvar / 2).exp() * eps).clamp(0, 1)
    weights = torch.linspace(0, 1, config.points, dtype=torch.float64)
    strips = {
        name: volumes(between_subjects(ends, task.mean, task.std, weights, "cpu")).clamp(0, 1)[:, 0].numpy()
        for name, ends in task.ends.items()
    }
    return Decoded(
        means=means[:, 0].numpy(),
        draws=draws[:, 0].numpy(),
        psnr=psnr(means, draws).numpy(),
        low=float(raw.min()),
        high=float(raw.max()),
        outside=float(((raw < -MARGIN) | (raw > 1 + MARGIN)).float().mean()),
        strips=strips,
    )


@torch.inference_mode()
def _unclamped(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """What ``Autoencoder.decode`` gives before it clamps."""
    return vae.decode(autoencoder.model, latents.to(autoencoder.dtype)).float().cpu()
