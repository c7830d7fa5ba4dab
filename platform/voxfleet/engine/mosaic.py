"""Samples while a training runs: pictures of them, and their distance from the validation split."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from voxfleet.config.jobs import SamplesConfig
from voxfleet.data.shards import Manifest
from voxfleet.diffusion.noise import Draws
from voxfleet.diffusion.process import FLOW, Process
from voxfleet.diffusion.samplers import SamplerConfig
from voxfleet.diffusion.seeds import row_seed
from voxfleet.engine.ingest import Reader
from voxfleet.engine.validation import to_batch
from voxfleet.metrics.latents import energy_coefficient
from voxfleet.models import DiT3D
from voxfleet.packages import ModelBundle, load_autoencoder
from voxfleet.train.diffusion import DiffusionRecipe

_STEPS = 16  # of the sampler that measures quality


@dataclass(frozen=True)
class SampleMosaic:
    """A mosaic of the same samples of each class, whatever network draws them."""

    config: SamplesConfig
    recipe: DiffusionRecipe
    manifest: Manifest

    def __call__(self, model: nn.Module, device: torch.device) -> bytes:
        """A PNG of the samples that ``model`` draws: images where there is an autoencoder, else the first channel."""
        from voxfleet.report.figures import mosaic  # here, as most processes that unpickle this draw no picture

        labels = [name for name in self.manifest.classes for _ in range(self.config.per_class)]
        seeds = [row_seed(0, 0, number % self.config.per_class) for number in range(len(labels))]
        volumes = self._volumes(
            _bundle(self.recipe, self.manifest, model).sample(labels, seeds, self.config.sampler), device
        )
        return mosaic(volumes.float().cpu().numpy(), labels)

    def _volumes(self, latents: Tensor, device: torch.device) -> Tensor:
        """(n, D, H, W) in [0, 1]."""
        if self.config.autoencoder:
            autoencoder = load_autoencoder(self.config.autoencoder, device)
            return torch.cat([autoencoder.decode(part) for part in latents.split(1)])[:, 0]
        first = latents[:, 0]
        low, high = (torch.quantile(first.flatten(), q) for q in (0.01, 0.99))
        return ((first - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class SampleDistance:
    """How far samples are from the latents of the validation split, in the same standardised space.

    ``number`` samples, of the split's labels in turn, always from the same noise, in few steps without guidance.
    """

    recipe: DiffusionRecipe
    manifest: Manifest
    number: int

    def __call__(self, model: nn.Module, device: torch.device, reader: Reader) -> float:
        """The energy coefficient; see ``metrics.latents``."""
        rows = np.arange(len(reader.index))
        batch = to_batch(reader.read(rows), device)
        real = self.recipe.latents(batch, Draws(0, 0, torch.from_numpy(rows).to(device)))
        labels = [self.manifest.classes[int(batch["label"][number % len(rows)])] for number in range(self.number)]
        seeds = [row_seed(0, 0, number) for number in range(self.number)]
        name = "heun" if self.recipe.diffusion.schedule == FLOW else "dpm-solver++"
        sampler = SamplerConfig(name=name, steps=_STEPS, guidance_scale=1.0)
        drawn = _bundle(self.recipe, self.manifest, model).sample(labels, seeds, sampler)
        return energy_coefficient(self.recipe.standardised(drawn).flatten(1), real.flatten(1))


def _bundle(recipe: DiffusionRecipe, manifest: Manifest, model: nn.Module) -> ModelBundle:
    assert isinstance(model, DiT3D)
    return ModelBundle(
        model=model,
        network=model,
        precision="float32",
        process=Process(recipe.diffusion),
        mean=recipe.mean,
        std=recipe.std,
        geometry=manifest.geometry,
        classes=manifest.classes,
        limits=manifest.limits,
        autoencoder_fingerprint=manifest.autoencoder,
        fingerprint="",
    )
