"""Fitting a small network on one device, whose best epoch is kept: what classifiers and segmenters share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voxfleet.errors import UnfitError
from voxfleet.models.execution import check_precision
from voxfleet.train.optim import OptimConfig, build_optimizer, learning_rate

_CLIP_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a network is fitted: AdamW, a linear warm-up, a cosine to zero; the best epoch is kept.

    Args:
        epochs: number of epochs.
        batch_size: volumes of a step.
        lr: highest learning rate.
        weight_decay: AdamW's decoupled weight decay.
        warmup: share of the steps over which the rate rises to lr.
        precision: float32, bfloat16, or auto: bfloat16 on a GPU, float32 elsewhere.
    """

    epochs: int = 60
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or more")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it must be in [0, 1)")
        check_precision(self.precision)


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves.

    Attributes:
        history: ``step``, ``epoch``, ``lr``, ``loss``, and the validation's figures, ``val_loss`` among them, of each
            epoch.
        best: the best epoch's entry; the network has its weights.
    """

    history: list[dict[str, float]]
    best: dict[str, float]


def fit(
    model: nn.Module,
    config: FitConfig,
    order: Callable[[int], np.ndarray],
    loss_of: Callable[[np.ndarray], Tensor],
    validate: Callable[[], dict[str, float]],
) -> Fitted:
    """Fit ``model`` in place, give it the weights of its best epoch, and put it into evaluation mode.

    Args:
        model: the network.
        config: how it is fitted.
        order: an epoch, from 0, to the samples that it draws, (draws,), as many in each.
        loss_of: the mean loss of a batch of these, (B,), with its gradients.
        validate: figures of the network as it is, of which the lowest ``val_loss`` is the best.

    Raises:
        UnfitError: if a loss is not finite.
    """
    draws = len(order(0))
    steps = math.ceil(draws / config.batch_size)
    total = steps * config.epochs
    optim = OptimConfig(
        lr=config.lr, weight_decay=config.weight_decay, warmup_steps=round(config.warmup * total), final_lr_ratio=0.0
    )
    optimizer = build_optimizer(optim, [(list(model.parameters()), 1.0)])
    history: list[dict[str, float]] = []
    best: dict[str, float] = {"val_loss": math.inf}
    weights: dict[str, Any] = {}
    for epoch in range(config.epochs):
        model.train()
        losses = []
        for number, batch in enumerate(np.array_split(order(epoch), steps), start=epoch * steps):
            rate = learning_rate(optim, number, total)
            losses.append(_step(model, optimizer, loss_of(batch), rate) * len(batch))
        loss = float(torch.stack(losses).sum()) / draws
        point = {"step": (epoch + 1) * steps, "epoch": epoch + 1, "lr": rate, "loss": loss, **validate()}
        if not (math.isfinite(loss) and math.isfinite(point["val_loss"])):
            raise UnfitError(f"the loss is not finite in epoch {epoch + 1}; lower training.lr")
        history.append(point)
        if point["val_loss"] < best["val_loss"]:
            best, weights = point, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    model.eval()
    return Fitted(history, best)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> Tensor:
    """One optimizer step at this learning rate; the loss, detached."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
    optimizer.step()
    return loss.detach()
