"""Embeddings of position, timestep and label. Letters: B batch, T tokens, E width."""

import math

import torch
from torch import Tensor, nn


def sincos_position(grid: tuple[int, int, int], width: int) -> Tensor:
    """Fixed 3D sine-cosine embedding of a token grid, (T, E) float32, in row-major order.

    Each axis fills a third of the width (ViT's 1D form per axis); what a width that six does not divide leaves over
    stays zero.
    """
    half = width // 6
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / max(half, 1))
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float64) for length in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in axes]  # 3 x (T, half)
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return nn.functional.pad(table, (0, width - table.shape[1])).float()


class TimestepEmbedding(nn.Module):
    """Sinusoid of the timestep, always in float32 (half precision keeps only half of 1000 timesteps), then an MLP."""

    frequencies: Tensor

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        half = frequencies // 2
        table = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", table, persistent=False)
        self.inner = nn.Linear(frequencies, width)
        self.outer = nn.Linear(width, width)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        """Embed timesteps: (B,) to (B, E)."""
        angles = t.float()[:, None] * self.frequencies.float()
        table = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.inner.weight.dtype)
        return self.outer(nn.functional.silu(self.inner(table)))
