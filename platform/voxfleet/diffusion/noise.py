"""Keyed noise: Philox4x32-10 counters instead of a stateful generator.

A number depends on its key and counter alone, so a sample is the same alone, in any batch, on any worker and after
any restart. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_U32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(key: Tensor, counter: Tensor) -> Tensor:
    """Philox4x32-10 of keys (..., 2) and counters (..., 4), both int64 holding 32-bit words; gives (..., 4)."""
    k0, k1 = key.unbind(-1)
    c0, c1, c2, c3 = counter.unbind(-1)
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, so both 32-bit halves are exact
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = ((p1 >> 32) & _U32) ^ c1 ^ k0, p1 & _U32, ((p0 >> 32) & _U32) ^ c3 ^ k1, p0 & _U32
        k0, k1 = (k0 + _WEYL[0]) & _U32, (k1 + _WEYL[1]) & _U32
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _words(key: Tensor, counter: Tensor, numbers: int) -> Tensor:
    """``numbers`` 32-bit words for each row: keys (B,), counters (B, 3), to (B, numbers)."""
    B, blocks = key.shape[0], math.ceil(numbers / 4)
    block = torch.arange(blocks, device=key.device)[None].expand(B, blocks)
    keys = torch.stack([key & _U32, (key >> 32) & _U32], dim=-1)[:, None].expand(B, blocks, 2)
    counters = torch.cat([block[..., None], counter[:, None].expand(B, blocks, 3)], dim=-1)
    return philox(keys, counters).flatten(1)[:, :numbers]


def keyed_uniform(key: Tensor, counter: Tensor) -> Tensor:
    """One uniform number in (0, 1) a row, (B,) float64, from keys (B,) and counters (B, 3), int64."""
    return (_words(key, counter, 1)[:, 0].double() + 0.5) * 2.0**-32


def keyed_normal(key: Tensor, counter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers (B, *shape) float32 from keys (B,) and counters (B, 3), int64.

    Box-Muller in float64, rounded once: the same bits eager or compiled, whatever the batch.
    """
    numbers = math.prod(shape)
    words = _words(key, counter, 4 * math.ceil(numbers / 4)).double().unflatten(1, (-1, 2, 2))
    radius = torch.sqrt(-2.0 * torch.log((words[:, :, 0] + 0.5) * 2.0**-32))  # (B, blocks, 2)
    angle = words[:, :, 1] * (2.0 * math.pi * 2.0**-32)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)
    return normal[:, :numbers].float().reshape(-1, *shape)


def sampling_noise(seeds: Tensor, step: int, shape: tuple[int, ...]) -> Tensor:
    """The noise that row seeds (B,) draw at ``step`` of sampling (0 is the start), (B, *shape)."""
    counter = torch.zeros(len(seeds), 3, dtype=torch.int64, device=seeds.device)
    counter[:, 0] = step
    return keyed_normal(seeds, counter, shape)


@dataclass(frozen=True)
class Draws:
    """Random numbers of training, keyed by (seed, epoch, draw index): the same on any rank and after any restart.

    ``index`` (B,) int64 is the position of each draw in its epoch's order. Each use takes a ``stream`` of its own.
    """

    seed: int
    epoch: int
    index: Tensor

    def _keys(self, stream: int) -> tuple[Tensor, Tensor]:
        fixed = torch.tensor([stream, self.epoch], device=self.index.device).expand(len(self.index), 2)
        return torch.full_like(self.index, self.seed), torch.cat([fixed, self.index[:, None]], dim=1)

    def uniform(self, stream: int) -> Tensor:
        """One number in (0, 1) a draw, (B,) float64."""
        return keyed_uniform(*self._keys(stream))

    def normal(self, stream: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, (B, *shape) float32."""
        return keyed_normal(*self._keys(stream), shape)
