"""Training the autoencoder on volumes. Letters: B batch, C latent channels, D/H/W voxels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxfleet.diffusion.noise import Draws
from voxfleet.metrics.image import psnr, ssim
from voxfleet.models.vae import AutoencoderConfig, build_autoencoder, decode, encode
from voxfleet.train.step import Batch

_POSTERIOR = 0  # the one stream of keyed draws


@dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig:
    """L1 reconstruction plus a small Kullback-Leibler term.

    Args:
        kl_weight: weight of the KL divergence to a standard normal, summed over the latent of a volume and divided by
            its voxels.
    """

    kl_weight: float = 1e-5

    def __post_init__(self) -> None:
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight is {self.kl_weight}; it must be 0 or more")


class Reconstruction(nn.Module):
    """Encode, draw, decode as one forward pass, so that DDP sees every gradient."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.autoencoder = build_autoencoder(config)

    def forward(self, volumes: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Volumes (B, 1, D, H, W) and eps (B, C, d, h, w) to (reconstruction, mu, logvar)."""
        mu, logvar = encode(self.autoencoder, volumes)
        return decode(self.autoencoder, mu + torch.exp(0.5 * logvar) * eps), mu, logvar


@dataclass(frozen=True)
class AutoencoderRecipe:
    """L1 + KL on whole volumes."""

    model: AutoencoderConfig
    loss_config: AutoencoderLossConfig

    def build(self) -> nn.Module:
        """A freshly initialised autoencoder."""
        return Reconstruction(self.model)

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """L1 + kl_weight * KL of each volume, (B,)."""
        x = batch["volume"][:, None]
        eps = draws.normal(_POSTERIOR, self.model.latent_shape(tuple(x.shape[2:])))
        out, mu, logvar = model(x, eps)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1) / x[0].numel()
        return (out - x).abs().flatten(1).mean(dim=1) + self.loss_config.kl_weight * kl

    def validate(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """L1 (``loss``), PSNR (dB) and SSIM of the reconstruction from the posterior's mean, each (B,)."""
        x = batch["volume"][:, None]
        out, _, _ = model(x, torch.zeros(len(x), *self.model.latent_shape(tuple(x.shape[2:])), device=x.device))
        out = out.float().clamp(0, 1)
        return {"loss": (out - x).abs().flatten(1).mean(dim=1), "psnr": psnr(out, x), "ssim": ssim(out, x)}


def autoencoder_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's own weights, from those of a ``Reconstruction``."""
    return {name.removeprefix("autoencoder."): value for name, value in state.items()}
