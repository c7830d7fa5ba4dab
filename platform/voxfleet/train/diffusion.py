"""Training a DiT3D on latents. Letters: B batch, C channels, D/H/W latent voxels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxfleet.diffusion.losses import denoising_loss
from voxfleet.diffusion.noise import Draws
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.train.step import Batch

# streams of the keyed draws: each use of randomness has its own
POSTERIOR, TIMESTEP, NOISE, LABEL = range(4)


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

    def build(self) -> nn.Module:
        """A freshly initialised DiT3D."""
        model = DiT3D(self.model)
        model.gradient_checkpointing = self.gradient_checkpointing
        return model

    def latents(self, batch: Batch, draws: Draws) -> Tensor:
        """A standardised draw from each sample's posterior, (B, C, D, H, W)."""
        eps = draws.normal(POSTERIOR, tuple(batch["mu"].shape[1:]))
        x = batch["mu"].float() + torch.exp(0.5 * batch["logvar"].float()) * eps
        return (x - _channels(self.mean, x)) / _channels(self.std, x)

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Loss of the target, (B,), with labels dropped for guidance."""
        dropped = draws.uniform(LABEL) < self.model.class_dropout_prob
        labels = torch.where(dropped, self.model.num_classes, batch["label"])
        return self._loss(model, batch, labels, draws)

    def validate(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The same loss with every label kept, as ``loss`` (B,)."""
        return {"loss": self._loss(model, batch, batch["label"], draws)}

    def _loss(self, model: nn.Module, batch: Batch, labels: Tensor, draws: Draws) -> Tensor:
        process = Process(self.diffusion)
        x0 = self.latents(batch, draws)
        noise = draws.normal(NOISE, tuple(x0.shape[1:]))
        t = process.draw_timesteps(draws.uniform(TIMESTEP))
        out = model(process.q_sample(x0, t, noise), t, labels)
        return denoising_loss(process, out, x0, noise, t)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).reshape(1, -1, 1, 1, 1)
