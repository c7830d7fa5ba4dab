"""One optimizer step, and what a training job brings to it. Letters: B batch (this worker's part)."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from voxfleet.diffusion.noise import Draws
from voxfleet.models.execution import autocast, check_precision
from voxfleet.train.optim import OptimConfig, learning_rate
from voxfleet.train.state import TrainState

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and how to train.

    Args:
        epochs: passes over the training split.
        batch_size: samples of one optimizer step, over all workers.
        precision: float32, bfloat16 (autocast; weights stay float32), or auto: bfloat16 on a GPU, float32 elsewhere.
        seed: of the initial weights, the order of the data, noise, timesteps and label dropout.
        log_every: steps between logged losses.
        validate_every: epochs between validations with the averaged weights (and one at the end).
        checkpoint_every: epochs between checkpoints (and one at the end).
    """

    epochs: int = 100
    batch_size: int = 8
    precision: str = "auto"
    seed: int = 0
    log_every: int = 10
    validate_every: int = 10
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_every", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_precision(self.precision)
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")


class Recipe(Protocol):
    """What is trained: the model, its loss, its validation. Recipes travel to the workers, so they hold no tensors."""

    def build(self) -> nn.Module:
        """The model with its initial weights (the global seed is set before)."""
        ...

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """The loss of each sample, (B,)."""
        ...

    def validate(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Measures of each sample of the validation split, each (B,); the draws are the same at every validation."""
        ...


def train_step(
    state: TrainState,
    network: nn.Module,
    recipe: Recipe,
    batch: Batch,
    draws: Draws,
    *,
    scale: float,
    total_steps: int,
    optim: OptimConfig,
    precision: str,
) -> Tensor:
    """One step of ``state``; returns the summed loss of this worker's samples (a detached scalar).

    ``network`` is the model, or its DDP wrapper. The gradient is that of ``scale`` * sum of the samples' losses: with
    DDP, which averages over W workers, scale = W / (samples of the global batch) gives the exact mean over the global
    batch even where the workers' parts differ in size. A worker without samples passes one dummy row and scale 0, so
    that its collectives happen.
    """
    rate = learning_rate(optim, state.step, total_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with autocast(next(state.model.parameters()).device, precision):
        loss = recipe.loss(network, batch, draws).float().sum()
    (loss * scale).backward()
    if optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.update_ema(optim.ema_decay)
    return loss.detach()
