"""One optimizer step, and what a training job brings to it. Letters: B batch (this worker's part)."""

import contextlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from voxfleet.diffusion.noise import Draws
from voxfleet.models.execution import autocast, check_precision
from voxfleet.train.optim import OptimConfig, ParameterGroups, learning_rate
from voxfleet.train.state import TrainState

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and how to train.

    Args:
        epochs: passes over the training split.
        batch_size: samples of one optimizer step, over all workers.
        accumulate: parts of a worker's batch that are computed one after another: less memory, the same gradient.
        precision: float32, bfloat16 or float16 (autocast; weights stay float32; float16 scales its loss), or auto:
            bfloat16 on a GPU, float32 elsewhere.
        compile: compile the network by torch.compile: a minute at the start, faster steps on a GPU.
        seed: of the initial weights, the order of the data, noise, timesteps and label dropout.
        log_every: steps between logged losses.
        validate_every: epochs between validations with the averaged weights (and one at the end), each of a checkpoint.
        checkpoint_every: epochs between checkpoints (and one at the end).
        keep_newest: newest checkpoints that are kept.
        keep_best: checkpoints of the lowest validation loss that are kept.
        max_failures: how often a worker may be lost until the run gives up; the same command goes on from there.
    """

    epochs: int = 100
    batch_size: int = 8
    accumulate: int = 1
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = 10
    validate_every: int = 10
    checkpoint_every: int = 10
    keep_newest: int = 1
    keep_best: int = 1
    max_failures: int = 8

    def __post_init__(self) -> None:
        every = ("log_every", "validate_every", "checkpoint_every")
        for name in ("epochs", "batch_size", "accumulate", *every, "keep_newest", "keep_best", "max_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_precision(self.precision, training=True)
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")

    def part_size(self, workers: int) -> int:
        """The largest part of a batch that one of so many ``workers`` computes."""
        return -(-self.batch_size // workers)

    def is_due(self, epoch: int, every: int) -> bool:
        """Whether something that is done ``every`` so many epochs is due after ``epoch`` (from 1)."""
        return epoch % every == 0 or epoch == self.epochs


class Recipe(Protocol):
    """What is trained: the model, its loss, its validation. Recipes travel to the workers, so they hold no tensors."""

    def build(self) -> nn.Module:
        """The model with its initial weights (the global seed is set before)."""
        ...

    def parameter_groups(self, model: nn.Module) -> ParameterGroups:
        """The parameters of ``model``, in groups that are clipped apart."""
        ...

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """``loss`` of each sample, which is minimised, and its terms, which are logged, each (B,)."""
        ...

    def validate(self, model: nn.Module, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Measures of each sample of the validation split, each (B,); the draws are the same at every validation.

        One is ``loss``, by which checkpoints are ranked.
        """
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
    accumulate: int = 1,
) -> tuple[dict[str, Tensor], Tensor]:
    """One step of ``state``; returns each sample's losses (B,) and the norm of the gradient before clipping, detached.

    ``network`` is the model, or its DDP wrapper. The gradient is that of ``scale`` * sum of the samples' losses: with
    DDP, which averages over W workers, scale = W / (samples of the global batch) gives the exact mean over the global
    batch even where the workers' parts differ in size. A worker without samples passes one dummy row and scale 0, so
    that its collectives happen.
    """
    rate = learning_rate(optim, state.step, total_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]
    parts = [_part(batch, draws, rows) for rows in _split(draws, accumulate)]
    losses = []
    for number, (part, part_draws) in enumerate(parts, start=1):
        with _synchronized(network, number == len(parts)):
            with autocast(next(state.model.parameters()).device, precision):
                found = recipe.loss(network, part, part_draws)
            state.scaler.scale(found["loss"].float().sum() * scale).backward()
        losses.append({name: values.detach().float() for name, values in found.items()})
    state.scaler.unscale_(state.optimizer)
    largest = optim.clip_norm or float("inf")
    norms = [nn.utils.clip_grad_norm_(group["params"], largest) for group in state.optimizer.param_groups]
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.update_ema(optim.ema_decay)
    joined = {name: torch.cat([part[name] for part in losses]) for name in losses[0]}
    return joined, torch.linalg.vector_norm(torch.stack(norms))


def _split(draws: Draws, parts: int) -> list[slice]:
    size = len(draws.index)
    parts = min(parts, size)
    return [slice(size * i // parts, size * (i + 1) // parts) for i in range(parts)]


def _part(batch: Batch, draws: Draws, rows: slice) -> tuple[Batch, Draws]:
    return {name: values[rows] for name, values in batch.items()}, Draws(draws.seed, draws.epoch, draws.index[rows])


def _synchronized(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Let DDP average the gradient once, in the ``last`` part of a step."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else contextlib.nullcontext()
