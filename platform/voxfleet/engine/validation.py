"""Validation with the averaged weights: by the workers, or by a task of its own that runs beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor, nn

from voxfleet import storage
from voxfleet.data.index import Arrays
from voxfleet.diffusion.noise import Draws
from voxfleet.engine.ingest import Reader, Split
from voxfleet.errors import VoxfleetError
from voxfleet.models.execution import autocast
from voxfleet.tracking.base import Tracker
from voxfleet.train.checkpoint import CheckpointStore, Measures
from voxfleet.train.state import read_state
from voxfleet.train.step import Batch, Recipe, TrainerConfig

_EPOCH = 2**31  # an epoch number of its own: the draws are the same at every validation

Mosaic = Callable[[nn.Module, torch.device], bytes]  # a network with averaged weights to a picture of its samples


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validation needs, wherever it runs."""

    recipe: Recipe
    split: Split
    trainer: TrainerConfig
    store: CheckpointStore
    mosaic: Mosaic | None = None
    mosaic_every: int = 0

    def is_due(self, epoch: int) -> bool:
        """Whether a validation is due after ``epoch`` (from 1)."""
        return self.trainer.is_due(epoch, self.trainer.validate_every)

    def picture(self, model: nn.Module, device: torch.device, step: int, epoch: int) -> None:
        """Write the mosaic of samples, where one is due after ``epoch``."""
        if self.mosaic and self.mosaic_every and self.trainer.is_due(epoch, self.mosaic_every):
            storage.write_bytes(mosaic_uri(self.store, step), self.mosaic(model, device))


def mosaic_uri(store: CheckpointStore, step: int) -> str:
    """Where the mosaic of ``step`` stands."""
    return storage.join(store.run, "samples", f"step-{step:09d}.png")


def to_batch(arrays: Arrays, device: torch.device) -> Batch:
    """Arrays as tensors on ``device``."""
    return {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}


@torch.no_grad()
def sums(
    recipe: Recipe, model: nn.Module, reader: Reader, rows: range, trainer: TrainerConfig, *, size: int
) -> dict[str, Tensor]:
    """Sum of each measure over ``rows`` of the split, float64, in batches of ``size``; without rows, zeros."""
    device = next(model.parameters()).device
    measures: dict[str, Tensor] = {}
    for start in range(rows.start, max(rows.stop, rows.start + 1), size):
        part = np.arange(start, min(start + size, rows.stop))
        arrays = reader.read(part) if len(part) else reader.blank()
        draws = Draws(trainer.seed, _EPOCH, torch.arange(start, start + len(arrays["label"]), device=device))
        with autocast(device, trainer.precision):
            values = recipe.validate(model, to_batch(arrays, device), draws)
        for name, value in values.items():
            total = value.double().sum() * float(len(part) > 0)
            measures[name] = measures.get(name, torch.zeros_like(total)) + total
    return measures


def point(step: int, means: dict[str, float]) -> Measures:
    """What is kept of a validation."""
    return {"step": step, **{f"val_{name}": value for name, value in means.items()}}


@ray.remote
def _validate(validation: Validation, step: int, epoch: int, threads: int) -> Measures:
    """Validate the checkpoint of ``step``."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = validation.recipe.build().to(device).eval().requires_grad_(False)
    model.load_state_dict(read_state(validation.store.read(step))["ema"])
    reader = validation.split.open()
    rows = range(len(reader.index))
    found = sums(validation.recipe, model, reader, rows, validation.trainer, size=validation.trainer.batch_size)
    validation.picture(model, device, step, epoch)
    return point(step, {name: total.item() / len(rows) for name, total in found.items()})


class Beside:
    """Validates checkpoints one after another beside the training, and keeps account of all that was measured.

    Checkpoints that an earlier run left without validation are validated too.
    """

    def __init__(self, validation: Validation, steps_per_epoch: int, options: dict[str, Any] | None, threads: int):
        self._validation, self._steps_per_epoch, self._threads = validation, steps_per_epoch, threads
        self._options = options  # of the task; without them the workers validate
        self._waiting: list[int] = []
        self._running: tuple[ray.ObjectRef, int] | None = None
        self.found: dict[int, Measures] = validation.store.validations()
        for step in validation.store.steps():
            self.saved(step)

    def saved(self, step: int) -> None:
        """There is a checkpoint of ``step``."""
        if self._options is not None and self._is_pending(step):
            self._waiting.append(step)

    def _is_pending(self, step: int) -> bool:
        """Whether what a validation measures of the checkpoint of ``step`` is still to come."""
        epoch, rest = divmod(step, self._steps_per_epoch)
        return not rest and self._validation.is_due(epoch) and step not in self.found

    def measured(self, measures: Measures, tracker: Tracker) -> None:
        """The workers validated."""
        self._keep(measures, tracker)

    def poll(self, tracker: Tracker, *, wait: bool = False) -> None:
        """Take what is finished, record it, and start what waits; with ``wait``, all of it."""
        while True:
            if self._running:
                ref, _ = self._running
                if not ray.wait([ref], timeout=None if wait else 0)[0]:
                    return
                self._running = None
                self._keep(_result(ref), tracker)
            if not self._waiting:
                return
            step = self._waiting.pop(0)
            task = _validate.options(**(self._options or {}))
            self._running = task.remote(self._validation, step, step // self._steps_per_epoch, self._threads), step

    def prune(self, newest: int, best: int) -> None:
        """Remove the checkpoints that nothing needs any more."""
        self._validation.store.prune(self.found, newest=newest, best=best, pending=self._is_pending)

    def _keep(self, measures: Measures, tracker: Tracker) -> None:
        step = int(measures["step"])
        tracker.log_metrics([measures])
        if step in self.found:
            return
        self.found[step] = measures
        self._validation.store.write_validations(self.found)
        if storage.exists(picture := mosaic_uri(self._validation.store, step)):
            tracker.log_artifact(picture, "samples")


def _result(ref: ray.ObjectRef) -> Measures:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VoxfleetError):
            raise error.cause from None
        raise
