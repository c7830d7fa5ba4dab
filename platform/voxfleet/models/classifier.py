"""Classifiers of volumes: EfficientNetV2-S in 3D, and MONAI's EfficientNet-B0.

Tan & Le, "EfficientNetV2: Smaller Models and Faster Training" (2021), Table 4, with 3 x 3 x 3 kernels; Tan & Le,
"EfficientNet" (2019). Two things differ from the papers, in both networks:

- Group norm (8 channels a group) instead of batch norm: a batch of volumes is small, so that its statistics are noise,
  and a small cohort is trained in too few steps for running averages. A sample's output never depends on its batch.
  What the first layer is given is normalised too, so that no statistics of the intensities are kept.
- The last strides are left out where a volume is small: at 32 voxels an edge, 32-fold strides would leave one voxel.

Letters: B batch, F features, D/H/W voxels, d/h/w voxels of a feature map.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

_GROUP = 8  # channels that are normalised together; every width is a multiple of it
_SMALLEST = 4  # voxels: no stride makes the shortest edge of a feature map shorter
_SQUEEZE = 4  # channels of a block's input over those of its squeeze-excitation
_HEAD = 1280  # features, at width 1


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Architecture of a classifier of volumes of one channel.

    Args:
        name: efficientnetv2-s, or efficientnet-b0.
        num_classes: number of classes.
        input_size: voxels of a volume along each axis, which decide how many strides there are; null: all of them.
        width: channels over those of the paper.
        depth: blocks over those of the paper.
        dropout: share of the features that training drops.
        drop_path: share of the samples for which training leaves out the last block; earlier blocks less.
    """

    name: str = "efficientnetv2-s"
    num_classes: int = 2
    input_size: tuple[int, int, int] | None = None
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        if self.name not in CLASSIFIERS:
            raise ValueError(f"name is {self.name!r}; it must be one of {', '.join(CLASSIFIERS)}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes is {self.num_classes}; it must be at least 2")
        if self.input_size is not None and (len(self.input_size) != 3 or min(self.input_size) < 1):
            raise ValueError(f"input_size is {self.input_size}; it must be three positive edges, or null")
        for name in ("width", "depth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")

    def channels(self, channels: int) -> int:
        """The paper's ``channels`` at this width: a multiple of 8, and no more than a tenth below."""
        wanted = channels * self.width
        rounded = max(_GROUP, int(wanted + _GROUP / 2) // _GROUP * _GROUP)
        return rounded if rounded >= 0.9 * wanted else rounded + _GROUP

    def strides(self, strides: Sequence[int]) -> list[int]:
        """``strides``, from the first layer on, those left out (1) that would make the shortest edge too short."""
        edge, kept = min(self.input_size or (2**30,)), []
        for stride in strides:
            kept.append(stride if edge // stride >= _SMALLEST else 1)
            edge //= kept[-1]
        return kept


class Classifier(nn.Module):
    """Feature maps, their mean over the volume, and a linear layer.

    Attributes:
        trunk: volumes (B, 1, D, H, W) to feature maps (B, F, d, h, w).
        head: features (B, F) to logits (B, classes).
    """

    def __init__(self, trunk: nn.Module, width: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.trunk, self.dropout = trunk, nn.Dropout(config.dropout)
        self.head = nn.Linear(width, config.num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (B, F) of volumes (B, 1, D, H, W)."""
        return self.trunk(x).mean(dim=(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of volumes (B, 1, D, H, W) in [0, 1]."""
        return self.head(self.dropout(self.features(x)))


def build_classifier(config: ClassifierConfig) -> Classifier:
    """A freshly initialised classifier, its weights in channels_last_3d: 1.2 to 1.5 times faster on a CPU."""
    trunk, width = CLASSIFIERS[config.name](config)
    for module in trunk.modules():
        if isinstance(module, nn.Conv3d):
            fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups  # depthwise: of one channel
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return Classifier(trunk, width, config).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


# --- EfficientNetV2-S ---------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """Blocks of one shape; the stride is that of the first."""

    fused: bool
    expansion: int
    stride: int
    channels: int
    blocks: int


STAGES = (
    Stage(fused=True, expansion=1, stride=1, channels=24, blocks=2),
    Stage(fused=True, expansion=4, stride=2, channels=48, blocks=4),
    Stage(fused=True, expansion=4, stride=2, channels=64, blocks=4),
    Stage(fused=False, expansion=4, stride=2, channels=128, blocks=6),
    Stage(fused=False, expansion=6, stride=1, channels=160, blocks=9),
    Stage(fused=False, expansion=6, stride=2, channels=256, blocks=15),
)


def _efficientnetv2_s(config: ClassifierConfig) -> tuple[nn.Module, int]:
    stem, *strides = config.strides((2, *(stage.stride for stage in STAGES)))
    counts = [math.ceil(stage.blocks * config.depth) for stage in STAGES]
    width = config.channels(STAGES[0].channels)
    layers: list[nn.Module] = [_convolution(1, width, 3, stem)]
    for stage, stride, count in zip(STAGES, strides, counts, strict=True):
        for number in range(count):
            drop = config.drop_path * (len(layers) - 1) / sum(counts)
            out = config.channels(stage.channels)
            layers.append(Block(stage, width, out, stride if number == 0 else 1, drop))
            width = out
    head = config.channels(_HEAD)
    return nn.Sequential(*layers, _convolution(width, head, 1)), head


class Block(nn.Module):
    """A (fused) inverted bottleneck, with a residual where the shape stays."""

    def __init__(self, stage: Stage, width: int, out: int, stride: int, drop_path: float) -> None:
        super().__init__()
        wide = width * stage.expansion
        layers: list[nn.Module]
        if stage.fused and stage.expansion == 1:
            layers = [_convolution(width, out, 3, stride)]
        elif stage.fused:
            layers = [_convolution(width, wide, 3, stride), _convolution(wide, out, 1, active=False)]
        else:
            layers = [
                _convolution(width, wide, 1),
                _convolution(wide, wide, 3, stride, groups=wide),
                SqueezeExcitation(wide, width // _SQUEEZE),
                _convolution(wide, out, 1, active=False),
            ]
        self.layers = nn.Sequential(*layers)
        self.residual, self.drop_path = stride == 1 and width == out, drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, d, h, w) to (B, C', d', h', w')."""
        h = self.layers(x)
        if not self.residual:
            return h
        if self.training and self.drop_path:
            keep = torch.rand(len(h), 1, 1, 1, 1, device=h.device) >= self.drop_path
            h = h * keep / (1 - self.drop_path)
        return x + h


class SqueezeExcitation(nn.Module):
    """Scale each channel by what the means of all channels say."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(width, squeezed, 1),
            nn.SiLU(),
            nn.Conv3d(squeezed, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, d, h, w) to the same shape."""
        return x * self.gate(x)


def _convolution(
    width: int, out: int, kernel: int, stride: int = 1, *, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """A convolution that keeps the shape (over the stride), its norm, and where ``active`` SiLU."""
    convolution = nn.Conv3d(width, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, _norm(out), *([nn.SiLU()] if active else []))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _GROUP, channels)


# --- EfficientNet-B0 ----------------------------------------------------------------------------------------------

# repeats, kernel, stride, expansion, channels in and out, as MONAI writes them
_B0 = (
    "r1_k3_s{}_e1_i32_o16_se0.25",
    "r2_k3_s{}_e6_i16_o24_se0.25",
    "r2_k5_s{}_e6_i24_o40_se0.25",
    "r3_k3_s{}_e6_i40_o80_se0.25",
    "r3_k5_s{}_e6_i80_o112_se0.25",
    "r4_k5_s{}_e6_i112_o192_se0.25",
    "r1_k3_s{}_e6_i192_o320_se0.25",
)
_B0_STRIDES = (1, 2, 2, 2, 1, 2, 1)


def _efficientnet_b0(config: ClassifierConfig) -> tuple[nn.Module, int]:
    # here, as MONAI takes seconds to import, which `--help` and bad configurations need not wait for
    from monai.networks.nets.efficientnet import EfficientNet

    _, *strides = config.strides((2, *_B0_STRIDES))  # MONAI's stem has its stride always
    model = EfficientNet(
        [block.format(f"{stride}{stride}") for block, stride in zip(_B0, strides, strict=True)],
        spatial_dims=3,
        in_channels=1,
        num_classes=config.num_classes,
        width_coefficient=config.width,
        depth_coefficient=config.depth,
        drop_connect_rate=config.drop_path,
    )
    trunk = nn.Sequential(
        nn.Sequential(model._conv_stem_padding, model._conv_stem, model._bn0, nn.SiLU()),
        model._blocks,
        nn.Sequential(model._conv_head_padding, model._conv_head, model._bn1, nn.SiLU()),
    )
    for name, module in list(trunk.named_modules()):
        if isinstance(module, nn.BatchNorm3d):
            trunk.set_submodule(name, _norm(module.num_features))
    return trunk, model._fc.in_features


CLASSIFIERS: dict[str, Callable[[ClassifierConfig], tuple[nn.Module, int]]] = {
    "efficientnetv2-s": _efficientnetv2_s,
    "efficientnet-b0": _efficientnet_b0,
}
