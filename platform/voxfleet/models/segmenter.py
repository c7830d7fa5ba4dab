"""A segmenter of both hippocampi: MONAI's residual U-Net. Letters: B batch, D/H/W voxels, S structures.

It tells what share of each voxel a structure fills, so that volumes are sums: at some millimetres a voxel, counting
voxels is too coarse for a structure of three millilitres.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STRUCTURES = ("left", "right")  # hippocampi; class 0 is everything else
_NEARLY_NONE = 0.01


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Architecture of a segmenter of volumes of one channel.

    Args:
        channels: of each resolution, the finest first; each has half the edge of the one before.
        res_units: convolutions of a residual unit.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    res_units: int = 2

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise ValueError(f"channels is {list(self.channels)}; it must be two or more positive numbers")
        if self.res_units < 1:
            raise ValueError(f"res_units is {self.res_units}; it must be at least 1")


class Segmenter(nn.Module):
    """Volumes to the logits of background, left and right hippocampus; any edges."""

    def __init__(self, config: SegmenterConfig) -> None:
        from monai.networks.nets import UNet  # here, as MONAI takes seconds to import

        super().__init__()
        levels = len(config.channels) - 1
        self.multiple = 2**levels
        self.unet = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1 + len(STRUCTURES),
            channels=config.channels,
            strides=(2,) * levels,
            num_res_units=config.res_units,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1 + S, D, H, W) of volumes (B, 1, D, H, W) in [0, 1]."""
        missing = [-edge % self.multiple for edge in reversed(x.shape[2:])]  # the last axis first
        padded = functional.pad(x, [side for edge in missing for side in (0, edge)])
        depth, height, width = x.shape[2:]
        return self.unet(padded)[..., :depth, :height, :width]


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """A freshly initialised segmenter."""
    return Segmenter(config)


def structure_voxels(logits: Tensor) -> Tensor:
    """Volume of each structure in voxels, (B, S) float32, of logits (B, 1 + S, D, H, W): the sum of its shares.

    Shares below .01 are left out: what is nearly 0 in each of a hundred thousand voxels adds up to a fifth of a
    hippocampus.
    """
    shares = torch.softmax(logits.float(), dim=1)[:, 1:]
    return torch.where(shares < _NEARLY_NONE, 0, shares).sum(dim=(2, 3, 4))
