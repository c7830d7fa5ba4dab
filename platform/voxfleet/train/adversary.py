"""A discriminator of patches, trained beside the autoencoder. Letters: B batch, D/H/W voxels.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (2017), with the least squares of Mao
et al., "Least Squares Generative Adversarial Networks" (2017). Both sides learn in one backward pass and one step: the
autoencoder's term sees the discriminator's weights as constants, the discriminator's sees the reconstruction as one.
"""

import torch
from torch import Tensor, nn


class Adversary(nn.Module):
    """Tells volumes from their reconstructions, patch by patch.

    Instance normalisation keeps a sample's verdict apart from the other samples of its batch.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        from monai.networks.nets import PatchDiscriminator  # here, as MONAI takes seconds to import

        self.discriminator = PatchDiscriminator(
            spatial_dims=3, channels=channels, in_channels=1, num_layers_d=layers, norm="INSTANCE"
        )

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Volumes and reconstructions (B, 1, D, H, W) to the losses of the autoencoder and the discriminator, (B,)."""
        constants = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        fooling = _distance(torch.func.functional_call(self.discriminator, constants, fake)[-1], 1.0)
        telling = _distance(self.discriminator(real)[-1], 1.0) + _distance(self.discriminator(fake.detach())[-1], 0.0)
        return fooling, 0.5 * telling

    def idle(self, rows: int) -> tuple[Tensor, Tensor]:
        """Zeros (B,) in place of ``forward``; the discriminator's gradient is zero, not missing, which DDP needs."""
        zeros = 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum().expand(rows)
        return zeros.detach(), zeros


def smallest_edge(layers: int) -> int:
    """Voxels along the shortest edge of a volume that a discriminator of so many ``layers`` can judge."""
    return 3 * 2**layers


def _distance(verdicts: Tensor, wanted: float) -> Tensor:
    """Mean squared distance of a sample's verdicts from the ``wanted`` one, (B,)."""
    return (verdicts.float() - wanted).square().flatten(1).mean(dim=1)
