"""DiT3D: a diffusion transformer for volumes, with global, window and strided attention.

Peebles & Xie, "Scalable Diffusion Models with Transformers" (2023): adaLN-zero blocks; in three dimensions as in
Mo et al., "DiT-3D" (2023). Letters: B batch, C channels, D/H/W voxels, T tokens, E width.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxfleet.models.attention import Attention, Shape3, plan_windows, split_axis
from voxfleet.models.embeddings import TimestepEmbedding, sincos_position
from voxfleet.models.initial import xavier, zeros


@dataclass(frozen=True, kw_only=True)
class DiT3DConfig:
    """Architecture of a DiT3D.

    Args:
        in_channels: channels of the latents.
        input_size: latent voxels along (D, H, W).
        patch_size: voxels of one token along (D, H, W); what it does not divide is padded and cropped again.
        hidden_size: width of the tokens.
        depth: number of transformer blocks.
        num_heads: attention heads; must divide hidden_size.
        mlp_ratio: hidden width of a block's MLP over hidden_size.
        window_size: largest window of tokens along (D, H, W) that attend to each other; null for global attention.
        global_every: every so many blocks, one attends globally; 0 for none.
        strided_every: every so many blocks, one attends in windows of tokens from all over the grid; 0 for none. Where
            both fall on a block, it is global.
        num_classes: number of labels; the label of this value means "no label".
        class_dropout_prob: share of training draws whose label is replaced by "no label" (for guidance).
        learn_sigma: answer the variance of a denoising step too, in channels after those of the target.
    """

    in_channels: int = 4
    input_size: Shape3 = (8, 14, 8)
    patch_size: Shape3 = (4, 4, 4)
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    window_size: Shape3 | None = (4, 4, 4)
    global_every: int = 0
    strided_every: int = 0
    num_classes: int = 2
    class_dropout_prob: float = 0.1
    learn_sigma: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "hidden_size", "depth", "num_heads", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("input_size", "patch_size", "window_size"):
            if getattr(self, name) is not None and min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; each edge must be at least 1")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads is {self.num_heads}; it must divide hidden_size ({self.hidden_size})")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; it must be above 0")
        for name in ("global_every", "strided_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (none) or more")
        if not 0 <= self.class_dropout_prob < 1:
            raise ValueError(f"class_dropout_prob is {self.class_dropout_prob}; it must be in [0, 1)")

    @property
    def grid(self) -> Shape3:
        """Tokens along (D, H, W)."""
        d, h, w = (math.ceil(n / p) for n, p in zip(self.input_size, self.patch_size, strict=True))
        return d, h, w

    @property
    def patch_numbers(self) -> int:
        """Numbers of the latents that one token stands for."""
        return self.in_channels * math.prod(self.patch_size)

    @property
    def out_channels(self) -> int:
        """Channels of the answer."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def attention(self) -> tuple[str, ...]:
        """How each block attends: "global", "strided" or "window"."""

        def kind(number: int) -> str:
            if self.window_size is None or (self.global_every and number % self.global_every == 0):
                return "global"
            return "strided" if self.strided_every and number % self.strided_every == 0 else "window"

        return tuple(kind(i + 1) for i in range(self.depth))

    @property
    def network(self) -> tuple[Any, ...]:
        """Equal for configurations that are one and the same network.

        Windows that cut the grid into as many parts are the same, and so are blocks that attend alike.
        """
        lengths = zip(self.grid, self.window_size or self.grid, strict=True)
        window = tuple(max(split_axis(length, size)) for length, size in lengths)
        kinds = ("global",) * self.depth if window == self.grid else self.attention
        if set(kinds) == {"global"}:
            window = self.grid
        return dataclasses.replace(self, window_size=None, global_every=0, strided_every=0), window, kinds

    @property
    def is_cut(self) -> bool:
        """Whether the tokens are cut into windows that no block reaches beyond."""
        sizes = zip(self.grid, self.window_size or self.grid, strict=True)
        return set(self.attention) == {"window"} and any(length > size for length, size in sizes)

    @classmethod
    def named(cls, name: str, **changes: Any) -> "DiT3DConfig":
        """The configuration called ``name``, such as "S/4": a size of SIZES and the edge of a cubic patch.

        Raises:
            ValueError: if there is no such size.
        """
        size, _, edge = name.partition("/")
        if size not in SIZES or not edge.isdigit():
            raise ValueError(f"{name!r} is no size and patch; write {', '.join(SIZES)}, '/', the edge of a patch: S/4")
        return cls(**{**SIZES[size], "patch_size": (int(edge),) * 3, **changes})


# Peebles & Xie, table 1
SIZES: dict[str, dict[str, int]] = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}


class Block(nn.Module):
    """Transformer block with adaLN-zero: shift, scale and gate from the condition, the gates starting at zero."""

    def __init__(self, config: DiT3DConfig, groups: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        E, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(E, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(E, config.num_heads, groups)
        self.norm2 = nn.LayerNorm(E, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(xavier(nn.Linear(E, inner)), nn.GELU(approximate="tanh"), xavier(nn.Linear(inner, E)))
        self.modulation = zeros(nn.Linear(E, 6 * E))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, E) and the activated condition (B, E) to (B, T, E)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    """Modulated norm and the projection of each token to its patch, starting at zero."""

    def __init__(self, width: int, patch_numbers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = zeros(nn.Linear(width, 2 * width))
        self.linear = zeros(nn.Linear(width, patch_numbers))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, E) and the activated condition (B, E) to (B, T, numbers of a patch)."""
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class DiT3D(nn.Module):
    """The denoiser: ``model(x, t, y)`` with x (B, C, D, H, W), t (B,), y (B,) int, gives (B, C, D, H, W).

    With learn_sigma the answer has 2 C channels: the target's, then the variance's. ``gradient_checkpointing`` computes
    the blocks again in the backward pass instead of keeping what is inside them: less memory, a third more time.
    """

    order: Tensor
    inverse: Tensor
    to_strided: Tensor
    to_window: Tensor
    position: Tensor

    def __init__(self, config: DiT3DConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        E, voxels = config.hidden_size, math.prod(config.patch_size)
        plan = plan_windows(config.grid, config.window_size)
        order = torch.tensor(plan.order)
        strided = torch.tensor(plan_windows(config.grid, config.window_size, strided=True).order)
        orders = {
            "order": order,  # grid order -> window order
            "inverse": order.argsort(),
            "to_strided": order.argsort()[strided],  # window order -> strided order
            "to_window": strided.argsort()[order],
        }
        for name, value in orders.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("position", sincos_position(config.grid, E)[order], persistent=False)
        self.patch_embedding = xavier(nn.Linear(config.patch_numbers, E))
        self.timestep_embedding = TimestepEmbedding(E)
        self.label_embedding = nn.Embedding(config.num_classes + 1, E)
        whole = ((1, len(order)),)
        self.blocks = nn.ModuleList(Block(config, whole if k == "global" else plan.groups) for k in config.attention)
        self.final_layer = FinalLayer(E, config.out_channels * voxels)
        nn.init.normal_(self.label_embedding.weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Denoise x (B, C, D, H, W) at timesteps t (B,) for labels y (B,); y == num_classes is "no label".

        Raises:
            ValueError: if the shape of x is not the configuration's.
        """
        expected = (self.config.in_channels, *self.config.input_size)
        if x.shape[1:] != expected:
            raise ValueError(f"latents have shape {tuple(x.shape[1:])}; this model takes {expected}")
        # the position, in float32, keeps the stream between the blocks in float32 under autocast
        tokens = self.patch_embedding(self._patches(x)[:, self.order]) + self.position  # (B, T, E), in window order
        condition = F.silu(self.timestep_embedding(t) + self.label_embedding(y))  # (B, E)
        arranged = "window"
        for block, kind in zip(self.blocks, self.config.attention, strict=True):
            if kind not in (arranged, "global"):  # a global block takes any order
                tokens, arranged = self._rearranged(tokens, kind), kind
            tokens = self._run(block, tokens, condition)
        if arranged != "window":
            tokens = self._rearranged(tokens, "window")
        return self._volume(self.final_layer(tokens, condition)[:, self.inverse])

    def _rearranged(self, tokens: Tensor, kind: str) -> Tensor:
        return tokens[:, self.to_strided if kind == "strided" else self.to_window]

    def _run(self, block: nn.Module, tokens: Tensor, condition: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, condition, use_reentrant=False)
        return block(tokens, condition)

    def _patches(self, x: Tensor) -> Tensor:
        d, h, w = self.config.patch_size
        short = [-n % p for n, p in zip(self.config.input_size, self.config.patch_size, strict=True)]
        if any(short):
            x = F.pad(x, (0, short[2], 0, short[1], 0, short[0]))
        return rearrange(x, "b c (i d) (j h) (k w) -> b (i j k) (c d h w)", d=d, h=h, w=w)

    def _volume(self, patches: Tensor) -> Tensor:
        (i, j, k), (d, h, w), (D, H, W) = self.config.grid, self.config.patch_size, self.config.input_size
        x = rearrange(patches, "b (i j k) (c d h w) -> b c (i d) (j h) (k w)", i=i, j=j, k=k, d=d, h=h, w=w)
        return x[:, :, :D, :H, :W]
