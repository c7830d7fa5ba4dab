"""The optimizer and the learning rate, as a pure function of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

# parameters whose gradient is clipped together, and their learning rate over the configured one
ParameterGroups = Sequence[tuple[list[nn.Parameter], float]]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and a cosine decay.

    Args:
        lr: highest learning rate, for the global batch.
        betas: decay rates of AdamW's two moments.
        weight_decay: AdamW's decoupled weight decay.
        warmup_steps: steps over which the rate rises linearly to lr.
        final_lr_ratio: the rate at the end over lr; 1 keeps it constant after the warm-up.
        clip_norm: largest norm of the whole gradient; null for no clipping.
        ema_decay: decay of the averaged weights (lower in the first steps).
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    final_lr_ratio: float = 1.0
    clip_norm: float | None = 1.0
    ema_decay: float = 0.9999

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; both must be in [0, 1)")
        for name in ("weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.final_lr_ratio <= 1:
            raise ValueError(f"final_lr_ratio is {self.final_lr_ratio}; it must be in [0, 1]")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be above 0, or null")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be in [0, 1)")


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """The rate of step ``step`` (from 0) of ``total``: linear warm-up, then a cosine to final_lr_ratio * lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def build_optimizer(config: OptimConfig, groups: ParameterGroups) -> torch.optim.AdamW:
    """Fused AdamW over ``groups``."""
    return torch.optim.AdamW(
        [{"params": parameters, "lr_ratio": ratio} for parameters, ratio in groups],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
