"""Training the autoencoder on volumes. Letters: B batch, C latent channels, D/H/W voxels."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxfleet.diffusion.noise import Draws
from voxfleet.errors import UserError
from voxfleet.foreign import read_foreign
from voxfleet.metrics.image import psnr, ssim
from voxfleet.models.perceptual import build_features, perceptual_distance
from voxfleet.models.vae import AutoencoderConfig, build_autoencoder, decode, encode
from voxfleet.models.vae_weights import unwrap
from voxfleet.train.adversary import Adversary
from voxfleet.train.optim import ParameterGroups
from voxfleet.train.step import Batch

_POSTERIOR = 0  # the one stream of keyed draws


@dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig:
    """L1 reconstruction plus a small Kullback-Leibler term; a perceptual and an adversarial one if asked for.

    Args:
        kl_weight: weight of the KL divergence to a standard normal, summed over the latent of a volume and divided by
            its voxels.
        perceptual_weight: weight of the distance between the features of volume and reconstruction; 0 for none.
        perceptual_weights: file with the weights of the 3D ResNet that gives the features (MedicalNet's resnet10 or
            resnet50, or others of MONAI's ResNetFeatures): .pt, .pth or .safetensors.
        adversarial_weight: weight of the verdict of a discriminator that is trained beside; 0 for none.
        adversarial_start: epochs before the discriminator begins: reconstructions had better be nearly good by then.
        discriminator_channels: width of the discriminator's first layer; each further one doubles it.
        discriminator_layers: layers of the discriminator; its patches have about 2 ** (layers + 2) voxels an edge.
        discriminator_lr_ratio: the discriminator's learning rate over that of the autoencoder.
    """

    kl_weight: float = 1e-5
    perceptual_weight: float = 0.0
    perceptual_weights: str | None = None
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    discriminator_channels: int = 32
    discriminator_layers: int = 3
    discriminator_lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in ("kl_weight", "perceptual_weight", "adversarial_weight", "adversarial_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("discriminator_channels", "discriminator_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.discriminator_lr_ratio <= 0:
            raise ValueError(f"discriminator_lr_ratio is {self.discriminator_lr_ratio}; it must be above 0")
        if bool(self.perceptual_weight) != bool(self.perceptual_weights):
            raise ValueError(
                f"perceptual_weight is {self.perceptual_weight} and perceptual_weights {self.perceptual_weights}; set "
                "both (the network's weights are a file of yours, nothing is downloaded) or neither"
            )


class Reconstruction(nn.Module):
    """Encode, draw, decode and judge as one forward pass, so that DDP sees every gradient."""

    def __init__(self, config: AutoencoderConfig, loss: AutoencoderLossConfig) -> None:
        super().__init__()
        self.autoencoder = build_autoencoder(config)
        self.adversary = (
            Adversary(loss.discriminator_channels, loss.discriminator_layers) if loss.adversarial_weight else None
        )

    def forward(self, volumes: Tensor, eps: Tensor, judged: bool | None = None) -> tuple[Tensor, ...]:
        """Volumes (B, 1, D, H, W) and eps (B, C, d, h, w) to (reconstruction, mu, logvar).

        With an adversary, ``judged`` asks for its two losses (B,) as well: zeros where it is False.
        """
        mu, logvar = encode(self.autoencoder, volumes)
        out = decode(self.autoencoder, mu + torch.exp(0.5 * logvar) * eps)
        if self.adversary is None or judged is None:
            return out, mu, logvar
        return out, mu, logvar, *(self.adversary(volumes, out) if judged else self.adversary.idle(len(volumes)))


@dataclass(frozen=True)
class AutoencoderRecipe:
    """L1 + KL on whole volumes, with the terms that the configuration adds."""

    model: AutoencoderConfig
    loss_config: AutoencoderLossConfig

    def build(self) -> nn.Module:
        """A freshly initialised autoencoder, and its adversary."""
        return Reconstruction(self.model, self.loss_config)

    def parameter_groups(self, model: nn.Module) -> ParameterGroups:
        """The autoencoder, and its adversary with a learning rate of its own."""
        assert isinstance(model, Reconstruction)
        groups = [(list(model.autoencoder.parameters()), 1.0)]
        if model.adversary:
            groups.append((list(model.adversary.parameters()), self.loss_config.discriminator_lr_ratio))
        return groups

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The weighted sum of the terms as ``loss``, which holds the discriminator's own loss too, and each, (B,)."""
        weights = self.loss_config
        x = batch["volume"][:, None]
        eps = draws.normal(_POSTERIOR, self.model.latent_shape(tuple(x.shape[2:])))
        out, mu, logvar, *verdicts = model(x, eps, judged=draws.epoch >= weights.adversarial_start)
        l1 = (out - x).abs().flatten(1).mean(dim=1)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1) / x[0].numel()
        loss, terms = l1 + weights.kl_weight * kl, {"l1": l1, "kl": kl}
        if weights.perceptual_weights:
            features = load_features(weights.perceptual_weights, x.device)
            terms["perceptual"] = perceptual_distance(features, out, x)
            loss = loss + weights.perceptual_weight * terms["perceptual"]
        if verdicts:
            terms["adversarial"], terms["discriminator"] = verdicts
            loss = loss + weights.adversarial_weight * terms["adversarial"] + terms["discriminator"]
        return {"loss": loss, **terms}

    def validate(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """L1 (``loss``), PSNR (dB) and SSIM of the reconstruction from the posterior's mean, each (B,)."""
        x = batch["volume"][:, None]
        out, *_ = model(x, torch.zeros(len(x), *self.model.latent_shape(tuple(x.shape[2:])), device=x.device))
        out = out.float().clamp(0, 1)
        return {"loss": (out - x).abs().flatten(1).mean(dim=1), "psnr": psnr(out, x), "ssim": ssim(out, x)}


def autoencoder_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's own weights, from those of a ``Reconstruction``."""
    prefix = "autoencoder."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@functools.cache
def load_features(uri: str, device: torch.device) -> nn.Module:
    """The network of the perceptual term, once a process.

    Raises:
        UserError: if the file cannot be read or holds other weights.
    """
    try:
        return build_features(unwrap(read_foreign(uri))).to(device)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"loss.perceptual_weights {uri}: {error}") from error
