"""How alike two volumes look: the distance of their features in a 3D ResNet that was trained elsewhere.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), with equal weights for
all channels. The network is MONAI's ResNetFeatures; weights for it are those of Chen et al., "Med3D: Transfer Learning
for 3D Medical Image Analysis" (2019). Letters: B batch, C channels, D/H/W voxels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

# without resnet18 and resnet34: their shortcuts have no weights, and in MONAI no gradient
NETWORKS = ("resnet10", "resnet50", "resnet101", "resnet152", "resnet200")


def build_features(weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of NETWORKS that ``weights`` belong to, frozen: (B, 1, D, H, W) to one (B, C, d, h, w) a level.

    Raises:
        ValueError: if they belong to none.
    """
    from monai.networks.nets.resnet import ResNetFeatures  # here, as MONAI takes seconds to import

    for name in NETWORKS:
        with torch.device("meta"):
            network = ResNetFeatures(name, pretrained=False)
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        if shapes == {key: value.shape for key, value in weights.items()}:
            network.load_state_dict(weights, assign=True)
            return network.eval().requires_grad_(False)
    raise ValueError(f"its weights are not those of a 3D ResNet of one input channel: {', '.join(NETWORKS)}")


def perceptual_distance(features: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the unit feature vectors of x and target (B, 1, D, H, W), summed over the levels, (B,).

    It is the mean over the voxels of a level. Both are standardised by the mean and standard deviation of target.
    """
    std, mean = torch.std_mean(target, dim=(1, 2, 3, 4), keepdim=True)
    with torch.no_grad():
        wanted = features((target - mean) / std.clamp_min(1e-6))
    levels = zip(features((x - mean) / std.clamp_min(1e-6)), wanted, strict=True)
    return torch.stack([_squares(normalize(a.float()) - normalize(b.float())) for a, b in levels]).sum(dim=0)


def _squares(difference: Tensor) -> Tensor:
    return difference.square().sum(dim=1).flatten(1).mean(dim=1)
