"""Validation with the averaged weights: by the workers, or by a task of its own that runs beside them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor, nn

from voxfleet import storage
from voxfleet.data.index import Arrays
from voxfleet.diffusion.noise import Draws
from voxfleet.engine.ingest import Reader, Split
from voxfleet.errors import UnfitError, VoxfleetError, WorkMissingError
from voxfleet.models.execution import autocast
from voxfleet.tracking.base import Tracker
from voxfleet.train.checkpoint import CheckpointStore, Measures, best_step
from voxfleet.train.state import read_state
from voxfleet.train.step import Batch, Recipe, TrainerConfig

_SEED, _EPOCH = 0, 2**31  # of no training: the draws are the same at every validation, and in every run
_SAMPLES = "samples"  # the folder of the mosaics, in a run and in its record
_NAMED = 8  # samples that a message names

Quality = Callable[[nn.Module, torch.device, Reader], float]  # of samples, beside the validation split; less is better
Mosaic = Callable[[nn.Module, torch.device], bytes]  # a network with averaged weights to a picture of its samples


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """Where a run may pause: after ``epochs`` it is validated, and it ends after ``until``, one of them or the last.

    ``quality``, if there is one, is measured there too, as ``val_distance``.
    """

    epochs: tuple[int, ...]
    until: int
    quality: Quality | None = None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validation needs, wherever it runs."""

    recipe: Recipe
    split: Split
    trainer: TrainerConfig
    store: CheckpointStore
    mosaic: Mosaic | None = None
    mosaic_every: int = 0
    rungs: Rungs | None = None

    def is_due(self, epoch: int) -> bool:
        """Whether a validation is due after ``epoch`` (from 1)."""
        rung = self.rungs is not None and epoch in self.rungs.epochs
        return rung or self.trainer.is_due(epoch, self.trainer.validate_every)

    def picture(self, model: nn.Module, device: torch.device, step: int, epoch: int) -> None:
        """Write the mosaic of samples, where one is due after ``epoch``."""
        if self.mosaic and self.mosaic_every and self.trainer.is_due(epoch, self.mosaic_every):
            uri = storage.join(self.store.run, _SAMPLES, _picture(step))
            storage.write_bytes(uri, self.mosaic(model, device))


def _picture(step: int) -> str:
    return f"step-{step:09d}.png"


def to_batch(arrays: Arrays, device: torch.device) -> Batch:
    """Arrays as tensors on ``device``."""
    return {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}


@torch.no_grad()
def sums(
    recipe: Recipe, model: nn.Module, reader: Reader, rows: range, trainer: TrainerConfig, *, size: int
) -> dict[str, Tensor]:
    """Sum of each measure over ``rows`` of the split, float64, in batches of ``size``; without rows, zeros.

    Raises:
        UnfitError: if the loss of a sample is not finite.
    """
    device = next(model.parameters()).device
    measures: dict[str, Tensor] = {}
    for start in range(rows.start, max(rows.stop, rows.start + 1), size):
        part = np.arange(start, min(start + size, rows.stop))
        arrays = reader.read(part) if len(part) else reader.blank()
        draws = Draws(_SEED, _EPOCH, torch.arange(start, start + len(arrays["label"]), device=device))
        with autocast(device, trainer.precision):
            values = recipe.validate(model, to_batch(arrays, device), draws)
        if len(wrong := part[~values["loss"].isfinite().cpu().numpy()[: len(part)]]):
            raise _not_finite(reader, wrong)
        for name, value in values.items():
            total = value.double().sum() * float(len(part) > 0)
            measures[name] = measures.get(name, torch.zeros_like(total)) + total
    return measures


def _not_finite(reader: Reader, rows: np.ndarray) -> UnfitError:
    names = ", ".join(str(name) for name in reader.index.subjects[rows[:_NAMED]])
    return UnfitError(
        f"the validation loss is not finite for {names}, of split val; check these samples, or make the shards again "
        "without them"
    )


def out_of_memory() -> UnfitError:
    """What to do where a GPU is too small."""
    return UnfitError(
        "the GPU is out of memory; lower trainer.batch_size, raise trainer.accumulate or set gradient_checkpointing"
    )


def point(step: int, means: dict[str, float]) -> Measures:
    """What is kept of a validation."""
    return {"step": step, **{f"val_{name}": value for name, value in means.items()}}


@ray.remote
def _validate(validation: Validation, step: int, epoch: int, size: int, threads: int, gpu: bool) -> Measures:
    """Validate the checkpoint of ``step``, in batches of ``size``."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if gpu else "cpu")
    model = validation.recipe.build().to(device).eval().requires_grad_(False)
    model.load_state_dict(read_state(validation.store.read(step))["ema"])
    reader = validation.split.open()
    rows = range(len(reader.index))
    try:
        found = sums(validation.recipe, model, reader, rows, validation.trainer, size=size)
        validation.picture(model, device, step, epoch)
    except torch.OutOfMemoryError:
        raise out_of_memory() from None
    return point(step, {name: total.item() / len(rows) for name, total in found.items()})


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where checkpoints are validated.

    Attributes:
        beside: whether there is room beside the workers; else they validate, and only what they left is validated
            here, when they have ended.
        threads, gpus: what a validation takes.
        size: samples of a batch.
    """

    beside: bool
    threads: int
    gpus: float
    size: int

    @property
    def options(self) -> dict[str, float]:
        """The resources of its task."""
        return {"num_cpus": 0, "num_gpus": self.gpus} if self.gpus else {"num_cpus": self.threads}


class Beside:
    """Validates checkpoints one after another beside the training, and keeps account of all that was measured.

    Checkpoints that were left without validation, by an earlier run or by workers that were lost, are validated too.
    """

    def __init__(self, validation: Validation, steps_per_epoch: int, place: Place, tracker: Tracker) -> None:
        self._validation, self._steps_per_epoch = validation, steps_per_epoch
        self._place, self._tracker = place, tracker
        self._waiting: list[int] = []
        self._running: tuple[ray.ObjectRef, int] | None = None
        self.found: dict[int, Measures] = validation.store.validations()
        self._record(list(self.found.values()), storage.names(storage.join(validation.store.run, _SAMPLES)))

    def look(self) -> None:
        """Take up the checkpoints that are there."""
        for step in self._validation.store.steps():
            self.saved(step)

    def saved(self, step: int) -> None:
        """There is a checkpoint of ``step``."""
        if self._is_pending(step) and step not in self._waiting and not (self._running and self._running[1] == step):
            self._waiting.append(step)

    def _is_pending(self, step: int) -> bool:
        """Whether what a validation measures of the checkpoint of ``step`` is still to come."""
        epoch, rest = divmod(step, self._steps_per_epoch)
        return not rest and self._validation.is_due(epoch) and step not in self.found

    def poll(self, *, wait: bool = False) -> None:
        """Take what is finished, record it, and start what waits; with ``wait``, all of it."""
        while self._place.beside or wait:
            if self._running:
                ref, _ = self._running
                if not ray.wait([ref], timeout=None if wait else 0)[0]:
                    return
                self._running = None
                self.measured(_result(ref))
            if not self._waiting:
                return
            self._start(self._waiting.pop(0))

    def _start(self, step: int) -> None:
        task, place = _validate.options(**self._place.options), self._place
        epoch = step // self._steps_per_epoch
        ref = task.remote(self._validation, step, epoch, place.size, place.threads, place.gpus > 0)
        self._running = ref, step

    def prune(self, newest: int, best: int) -> None:
        """Remove the checkpoints that nothing needs any more."""
        self._validation.store.prune(self.found, newest=newest, best=best, pending=self._is_pending)

    def measured(self, measures: Measures) -> None:
        """Keep and record what a validation found, here or in the workers."""
        step = int(measures["step"])
        if step in self._waiting:
            self._waiting.remove(step)
        if step not in self.found:
            self.found[step] = measures
            self._validation.store.write_validations(self.found)
            name = _picture(step)
            there = storage.exists(storage.join(self._validation.store.run, _SAMPLES, name))
            self._record([measures], [name] if there else [])

    def _record(self, points: list[Measures], pictures: list[str]) -> None:
        self._tracker.log_metrics(points)
        for name in pictures:
            self._tracker.log_artifact(storage.join(self._validation.store.run, _SAMPLES, name), _SAMPLES)
        if best := best_step(self.found):
            self._tracker.log_reference("checkpoint_best", self._validation.store.uri(best))


def _result(ref: ray.ObjectRef) -> Measures:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VoxfleetError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise WorkMissingError(
            f"the process that validated was lost ({type(error).__name__}); run the same command again"
        ) from error
