"""Window attention without padding: balanced windows, grouped by size.

Letters: B batch, T tokens, E width, N heads, D/H/W the axes of the token grid.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxfleet.models.initial import xavier

Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class WindowPlan:
    """Which tokens attend to which: an order of the tokens, and groups of equally large windows in that order.

    ``order[i]`` is the grid index (row-major) of the i-th token in window order; ``groups`` lists
    ``(windows, tokens per window)`` of consecutive tokens, so that every group is a plain view.
    """

    order: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]


def split_axis(length: int, window: int) -> list[int]:
    """Edges of ceil(length / window) consecutive parts that differ by at most one, as ``np.array_split`` cuts.

    A window larger than the axis is the whole axis.
    """
    parts = math.ceil(length / min(window, length))
    small, larger = divmod(length, parts)
    return [small + 1] * larger + [small] * (parts - larger)


def plan_windows(grid: Shape3, window: Shape3 | None, *, strided: bool = False) -> WindowPlan:
    """Cut a token grid into windows of at most ``window`` tokens an edge; None is one window over everything.

    Windows are boxes, or, ``strided``, every k-th token along each axis, for k windows along it: those reach across
    the whole grid. Both forms have the same groups (MaxViT calls them block and grid attention: Tu et al., 2022).
    """
    tokens = np.arange(math.prod(grid)).reshape(grid)
    cuts = []  # of each axis, the parts: slices of it
    for length, size in zip(grid, window or grid, strict=True):
        edges = split_axis(length, size)
        ends = list(itertools.accumulate(edges))
        boxes = [slice(end - edge, end) for end, edge in zip(ends, edges, strict=True)]
        cuts.append([slice(i, None, len(edges)) for i in range(len(edges))] if strided else boxes)
    windows = [tokens[part].flatten().tolist() for part in itertools.product(*cuts)]
    windows.sort(key=len, reverse=True)  # stable: windows of one size keep their order
    groups = [(len(list(same)), size) for size, same in itertools.groupby(windows, key=len)]
    return WindowPlan(order=tuple(itertools.chain.from_iterable(windows)), groups=tuple(groups))


class Attention(nn.Module):
    """Multi-head self-attention within the windows of a plan; tokens arrive in the plan's order."""

    def __init__(self, width: int, heads: int, groups: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.heads = heads
        self.groups = groups
        self.qkv = xavier(nn.Linear(width, 3 * width))
        self.proj = xavier(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, T, E) to (B, T, E)."""
        parts = self.qkv(x).split([count * size for count, size in self.groups], dim=1)
        outs = [self._attend(part, count, size) for part, (count, size) in zip(parts, self.groups, strict=True)]
        return self.proj(outs[0] if len(outs) == 1 else torch.cat(outs, dim=1))

    def _attend(self, qkv: Tensor, count: int, size: int) -> Tensor:
        B, T, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        # windows join the batch: a 5-D call would silently take the slow kernel
        q, k, v = qkv.reshape(B * count, size, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B*count, N, size, E/N)
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(B, T, width)
