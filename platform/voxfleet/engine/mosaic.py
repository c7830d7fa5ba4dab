"""Pictures of samples while a training runs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxfleet.config.jobs import SamplesConfig
from voxfleet.data.shards import Manifest
from voxfleet.diffusion.noise import row_seed
from voxfleet.diffusion.process import Process
from voxfleet.models import DiT3D
from voxfleet.packages import ModelBundle, load_autoencoder
from voxfleet.report.figures import mosaic
from voxfleet.train.diffusion import DiffusionRecipe


@dataclass(frozen=True)
class SampleMosaic:
    """A mosaic of the same samples of each class, whatever network draws them."""

    config: SamplesConfig
    recipe: DiffusionRecipe
    manifest: Manifest

    def __call__(self, model: nn.Module, device: torch.device) -> bytes:
        """A PNG of the samples that ``model`` draws: images where there is an autoencoder, else the first channel."""
        labels = [name for name in self.manifest.classes for _ in range(self.config.per_class)]
        seeds = [row_seed(0, 0, number % self.config.per_class) for number in range(len(labels))]
        volumes = self._volumes(self._bundle(model).sample(labels, seeds, self.config.sampler), device)
        return mosaic(volumes.float().cpu().numpy(), labels)

    def _bundle(self, model: nn.Module) -> ModelBundle:
        assert isinstance(model, DiT3D)
        return ModelBundle(
            model=model,
            network=model,
            precision="float32",
            process=Process(self.recipe.diffusion),
            mean=self.recipe.mean,
            std=self.recipe.std,
            geometry=self.manifest.geometry,
            classes=self.manifest.classes,
            limits=self.manifest.limits,
            autoencoder_fingerprint=self.manifest.autoencoder,
            fingerprint="",
        )

    def _volumes(self, latents: Tensor, device: torch.device) -> Tensor:
        """(n, D, H, W) in [0, 1]."""
        if self.config.autoencoder:
            autoencoder = load_autoencoder(self.config.autoencoder, device)
            return torch.cat([autoencoder.decode(part) for part in latents.split(1)])[:, 0]
        first = latents[:, 0]
        low, high = (torch.quantile(first.flatten(), q) for q in (0.01, 0.99))
        return ((first - low) / (high - low)).clamp(0, 1)
