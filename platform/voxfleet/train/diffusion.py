"""Training a DiT3D on latents. Letters: B batch, C channels, D/H/W latent voxels."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxfleet.diffusion.losses import denoising_loss
from voxfleet.diffusion.noise import Draws
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.train.optim import ParameterGroups
from voxfleet.train.step import Batch

# streams of the keyed draws: each use of randomness has its own
POSTERIOR, TIMESTEP, NOISE, LABEL, BLUR = range(5)
BUCKETS = 4  # of equal width in time, by which the validation loss is shown
LOG_SNRS = (2.0, 1.0, 0.0, -1.0, -2.0)  # where networks of different processes are compared


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Changes of the latents of training; off by default.

    Args:
        noise: standard deviation of normal noise that is added, in units of the standardised latents.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise is {self.noise}; it must be 0 or more")


@dataclass(frozen=True)
class DiffusionRecipe:
    """Predict the target of a noised, standardised draw mu + sigma * eps of each sample's latents.

    ``mean`` and ``std`` are the per-channel statistics of such draws over the training split.
    """

    model: DiT3DConfig
    diffusion: DiffusionConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gradient_checkpointing: bool = False
    augment: AugmentConfig = AugmentConfig()

    def build(self) -> nn.Module:
        """A freshly initialised DiT3D."""
        model = DiT3D(self.model)
        model.gradient_checkpointing = self.gradient_checkpointing
        return model

    def latents(self, batch: Batch, draws: Draws) -> Tensor:
        """A standardised draw from each sample's posterior, (B, C, D, H, W)."""
        eps = draws.normal(POSTERIOR, tuple(batch["mu"].shape[1:]))
        x = batch["mu"].float() + torch.exp(0.5 * batch["logvar"].float()) * eps
        return self.standardised(x)

    def standardised(self, x: Tensor) -> Tensor:
        """Latents (B, C, D, H, W) with the mean and standard deviation of the training split taken out."""
        return (x - _channels(self.mean, x.device)) / _channels(self.std, x.device)

    def parameter_groups(self, model: nn.Module) -> ParameterGroups:
        """All in one."""
        return [(list(model.parameters()), 1.0)]

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """``loss`` of the target, (B,), with labels dropped for guidance, of the latents as they are augmented."""
        dropped = draws.uniform(LABEL) < self.model.class_dropout_prob
        labels = torch.where(dropped, self.model.num_classes, batch["label"])
        x0 = self._augmented(self.latents(batch, draws), draws)
        return {"loss": self._loss(model, x0, labels, draws.uniform(TIMESTEP), draws)}

    def validate(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The same loss, with every label kept: in each part of time, and their mean as ``loss``, each (B,).

        In each part, a sample's timestep is the same at every validation; as is its noise. ``error`` compares networks
        of any target, weighting and schedule.
        """
        x0, uniform = self.latents(batch, draws), draws.uniform(TIMESTEP)
        times = {f"loss_t{bucket + 1}of{BUCKETS}": (bucket + uniform) / BUCKETS for bucket in range(BUCKETS)}
        found = {name: self._loss(model, x0, batch["label"], time, draws) for name, time in times.items()}
        loss = torch.stack(list(found.values())).mean(dim=0)
        return {"loss": loss, **found, "error": self._error(model, x0, batch["label"], draws)}

    def _error(self, model: nn.Module, x0: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Squared error of the velocity of the variance-preserving path, mean over fixed signal-to-noise ratios, (B,).

        That of x0 times 1 + SNR, whatever is predicted and however noise grows. An answer of nothing but the mean has 1
        + SNR.
        """
        process, noise = Process(self.diffusion), draws.normal(NOISE, tuple(x0.shape[1:]))
        errors = []
        for log_snr in LOG_SNRS:
            t = process.timestep_at(log_snr, x0.device).expand(len(x0))
            x = process.q_sample(x0, t, noise)
            answer = model(x, t, labels).float()[:, : x0.shape[1]]
            error = (process.convert(x, answer, t, "x0") - x0).square().flatten(1).mean(dim=1)
            alpha, sigma = process.levels(t)
            errors.append(error * (1 + (alpha / sigma).square()).float())
        return torch.stack(errors).mean(dim=0)

    def _augmented(self, x0: Tensor, draws: Draws) -> Tensor:
        if self.augment.noise:
            x0 = x0 + self.augment.noise * draws.normal(BLUR, tuple(x0.shape[1:]))
        return x0

    def _loss(self, model: nn.Module, x0: Tensor, labels: Tensor, time: Tensor, draws: Draws) -> Tensor:
        """The loss at ``time`` (B,) in (0, 1)."""
        process = Process(self.diffusion)
        noise = draws.normal(NOISE, tuple(x0.shape[1:]))
        t = process.draw_timesteps(time)
        out = model(process.q_sample(x0, t, noise), t, labels)
        return denoising_loss(process, out, x0, noise, t)


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).reshape(1, -1, 1, 1, 1)
