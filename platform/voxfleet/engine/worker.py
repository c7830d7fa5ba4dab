"""What each worker of a training does: the loop over the plan, and all that has to be the same after a restart."""

import os
import re
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.v2._internal.execution.context import get_train_context
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from voxfleet.data.index import Arrays
from voxfleet.data.plan import Plan
from voxfleet.diffusion.noise import Draws
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.ingest import Split
from voxfleet.engine.validation import Validation, out_of_memory, point, sums, to_batch
from voxfleet.errors import UserError, VoxfleetError
from voxfleet.models.execution import MODES, autocast, resolve_precision
from voxfleet.train.optim import OptimConfig, learning_rate
from voxfleet.train.speed import matrix_rate
from voxfleet.train.state import TrainState, read_state, state_bytes
from voxfleet.train.step import Batch, train_step

_AHEAD = 2  # batches that are ready before they are needed
_NAMED = 8  # samples that a message names
_LOST = re.compile("gloo|nccl|connection|socket|timed out", re.IGNORECASE)  # a collective without a peer
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the workers are given."""

    validation: Validation
    train: Split
    optim: OptimConfig
    balanced: bool
    inside: bool  # the workers validate
    threads: int
    flops: int | None  # of one sample in one step
    began: float  # unix time
    mailbox: Any

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self._steps(self.validation.trainer.epochs)

    @property
    def last_step(self) -> int:
        """The step at which this fit ends."""
        rungs = self.validation.rungs
        return self._steps(rungs.until) if rungs else self.total_steps

    def _steps(self, epochs: int) -> int:
        return epochs * -(-self.train.rows // self.validation.trainer.batch_size)


def work(config: dict[str, Any]) -> None:
    """The training function of Ray Train.

    What starting again would not mend is left in the mailbox, and the group that Ray starts in place of the failed one
    ends at once. After any other failure, which is that of a process or a node, the next group continues from the last
    checkpoint.
    """
    fit: Fit = config["fit"]
    if ray.get(fit.mailbox.failures.remote()):
        return
    torch.set_num_threads(fit.threads)
    try:
        with ray_errors():
            worker = Worker(fit)
            worker.restore()
            worker.run()
    except Exception as error:
        if final := _final(error):
            ray.get(fit.mailbox.fail.remote(final))
        raise


class WorkerError(RuntimeError):
    """A bug, met in a worker: its message is the worker's traceback."""


def _final(error: Exception) -> Exception | None:
    """What ends the run because of ``error``; None where another worker or a node was lost."""
    if isinstance(error, VoxfleetError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory()
    if isinstance(error, ray.exceptions.RayError) or (isinstance(error, RuntimeError) and _LOST.search(str(error))):
        return None
    return WorkerError(traceback.format_exc())


@dataclass
class _Done:
    """A step that is not logged yet."""

    step: int
    rows: np.ndarray
    losses: dict[str, Tensor]
    norm: Tensor


@dataclass
class _Clock:
    """Time since the last log."""

    began: float = field(default_factory=time.monotonic)
    waited: float = 0.0


class Worker:
    """One rank."""

    def __init__(self, fit: Fit) -> None:
        self.fit, self.trainer, self.recipe = fit, fit.validation.trainer, fit.validation.recipe
        context = ray.train.get_context()
        self.world, self.rank = context.get_world_size(), context.get_world_rank()
        self.device = ray.train.torch.get_device()
        self.precision = resolve_precision(self.trainer.precision, self.device)
        self.reader, self.val = fit.train.open(), fit.validation.split.open()
        index = self.reader.index
        self.plan = Plan(
            labels=index.labels,
            groups=index.groups,
            batch_size=self.trainer.batch_size,
            row_bytes=index.row_bytes(self.reader.columns),
            seed=self.trainer.seed,
            balanced=fit.balanced,
        )
        torch.manual_seed(self.trainer.seed)
        model = self.recipe.build().to(self.device)
        self.state = TrainState.create(model, fit.optim, self.precision, self.recipe.parameter_groups(model))
        self.averaged = self.recipe.build().to(self.device).eval().requires_grad_(False)
        self.network: nn.Module = MODES["compiled" if self.trainer.compile else "eager"](self.state.model)
        if self.world > 1:
            self.network = DistributedDataParallel(self.network)
        self.writer = _Writer(fit)
        self.recent: list[_Done] = []
        self.warned, self.leaving = False, set[str]()  # a node is about to be taken away; those that we know of
        self.clock = _Clock()
        self.matrix_rate = matrix_rate(self.precision, self.device) if fit.flops and not self.rank else 0.0

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        store = self.fit.validation.store
        newest = torch.tensor([max(store.steps(), default=-1)], device=self.device)
        if self.world > 1:
            torch.distributed.broadcast(newest, 0)
        if newest >= 0:
            self.state.load(read_state(store.read(int(newest))))
        if self.world > 1:
            self._settle_buckets()
        self._post({"restored": self.state.step, "history": self.state.history, "workers": self.world})

    def _settle_buckets(self) -> None:
        """DDP orders its gradient buckets anew in the second pass: do both before the first real step.

        Otherwise, with three workers or more, a resumed run sums its first gradient in another order.
        """
        usual = self.plan.part(0, self.world, self.rank)
        rows = max(1, (usual.stop - usual.start) // self.trainer.accumulate)  # a size that is compiled anyway
        blank = {name: values.repeat(rows, axis=0) for name, values in self.reader.blank().items()}
        for _ in range(2):
            with autocast(self.device, self.precision):
                found = self.recipe.loss(self.network, to_batch(blank, self.device), self._draws(0, range(rows)))
            (found["loss"].float().sum() * 0.0).backward()
        self.state.optimizer.zero_grad(set_to_none=True)

    def run(self) -> None:
        """All steps that are left."""
        first, began = self.state.step, time.monotonic()
        with closing(ahead(self._batches(), _AHEAD)) as batches:
            while self.state.step < self.fit.last_step:
                asked = time.monotonic()
                positions, rows, staged = next(batches)
                self.clock.waited += time.monotonic() - asked
                self._step(positions, rows, staged)
                if self.state.step == first + 1:
                    self._post({"step": self.state.step, "first_step_s": time.time() - self.fit.began})
                epoch, position = divmod(self.state.step, self.plan.steps)
                save = position == 0 and self._is_due(epoch)
                # before a checkpoint too: what is logged must not depend on where a run was interrupted
                if (save or self.state.step % self.trainer.log_every == 0) and not self._log():
                    break
                if save:
                    self._save(epoch)
                elif self.warned:
                    self._post({"warned": self.state.step})
                    self._write()
                self.warned = False
        self._post({"trained_s": time.monotonic() - began})
        self.writer.wait()

    def _is_due(self, epoch: int) -> bool:
        return self.fit.validation.is_due(epoch) or self.trainer.is_due(epoch, self.trainer.checkpoint_every)

    def _batches(self) -> Generator[tuple[range, np.ndarray, Batch]]:
        """This worker's part of every batch that is left: positions in the epoch's order, rows, and what they hold."""
        first_epoch, first = divmod(self.state.step, self.plan.steps)
        for epoch in range(first_epoch, self.trainer.epochs):
            order = self.plan.order(epoch)
            parts = [self.plan.part(step, self.world, self.rank) for step in range(first, self.plan.steps)]
            rows = np.concatenate([order[part] for part in parts])
            sizes = [size for part in parts if (size := part.stop - part.start)]
            units = self.plan.units(first, self.world, self.rank)
            with closing(self.reader.batches(rows, sizes, units)) as batches:
                for part in parts:
                    positions = range(part.start, part.stop)
                    yield positions, order[part], self._staged(next(batches) if positions else self.reader.blank())
            first = 0

    def _staged(self, arrays: Arrays) -> Batch:
        """Arrays as tensors from which a GPU copies while it computes."""
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        if self.device.type == "cuda":
            return {name: values.pin_memory() for name, values in tensors.items()}
        return tensors

    def _draws(self, epoch: int, positions: range) -> Draws:
        return Draws(self.trainer.seed, epoch, torch.arange(positions.start, positions.stop, device=self.device))

    def _step(self, positions: range, rows: np.ndarray, staged: Batch) -> None:
        epoch, step = divmod(self.state.step, self.plan.steps)
        whole = min(self.plan.batch_size, self.plan.draws - step * self.plan.batch_size)
        losses, norm = train_step(
            self.state,
            self.network,
            self.recipe,
            {name: values.to(self.device, non_blocking=True) for name, values in staged.items()},
            self._draws(epoch, positions or range(1)),
            scale=self.world / whole if positions else 0.0,
            total_steps=self.fit.total_steps,
            optim=self.fit.optim,
            precision=self.precision,
            accumulate=self.trainer.accumulate,
        )
        real = {name: values[: len(positions)] for name, values in losses.items()}
        self.recent.append(_Done(self.state.step, rows, real, norm))

    def _log(self) -> bool:
        """Log the mean loss since the last log; False if it is not finite, which ends the run."""
        names = list(self.recent[0].losses)
        losses = torch.stack([torch.cat([done.losses[name] for done in self.recent]) for name in names]).double()
        norm = torch.stack([done.norm for done in self.recent]).double()
        counted = torch.cat([losses.sum(dim=1), torch.tensor([losses.shape[1], self._is_warned()]).to(losses)])
        *totals, samples, warned = self._reduced(counted).tolist()
        self.warned = warned > 0
        means = {name: total / samples for name, total in zip(names, totals, strict=True)}
        if not np.isfinite(means["loss"]) or (self._norm_counts() and not norm.isfinite().all()):
            self._name_culprits()
            return False
        self.writer.check()
        rate = learning_rate(self.fit.optim, self.state.step - 1, self.fit.total_steps)
        logged = {"step": self.state.step, **means, "lr": rate}
        if len(finite := norm[norm.isfinite()]):
            logged["grad_norm"] = finite.mean().item()
        self.state.history.append(logged)
        self._post({**logged, **self._speed(samples)})
        self.recent.clear()
        return True

    def _is_warned(self) -> bool:
        """Whether Ray has told the first worker of nodes that are about to be taken away, and had not before.

        All learn it with the losses: Ray's own function for it would be a barrier of its own.
        """
        info = get_train_context().preemption_context.preemption_info
        nodes = set(info.preempted_node_ids) if info and not self.rank else set()
        news = nodes - self.leaving
        self.leaving |= news
        return bool(news)

    def _norm_counts(self) -> bool:
        """Whether a gradient that is not finite is wrong: in float16 such steps are skipped, and the scale lowered."""
        scaler = self.state.scaler
        return not scaler.is_enabled() or scaler.get_scale() < 1

    def _speed(self, samples: float) -> dict[str, float]:
        """How fast it went since the last log."""
        seconds = time.monotonic() - self.clock.began
        found = {"samples_per_s": samples / seconds, "data_wait_share": self.clock.waited / seconds}
        self.clock = _Clock()
        if self.matrix_rate and self.fit.flops:
            rate = found["samples_per_s"] * self.fit.flops / self.world
            found |= {"tflops_per_worker": rate / 1e12, "matrix_share": rate / self.matrix_rate}
        if self.device.type == "cuda":
            return {**found, "gpu_memory_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}
        with open("/proc/self/statm") as file:
            return {**found, "memory_gb": int(file.read().split()[1]) * _PAGE / 1e9}

    def _name_culprits(self) -> None:
        """Leave the samples of the first step whose loss or gradient is not finite in the mailbox."""
        bad = {done.step: done.rows[~done.losses["loss"].isfinite().cpu().numpy()] for done in self.recent}
        bad = {step: rows for step, rows in bad.items() if len(rows)}
        first = self._first(bad)
        if first > self.fit.total_steps:  # no loss but a gradient, which is that of all workers
            bad = {done.step: done.rows for done in self.recent if not done.norm.isfinite()}
            first = self._first(bad)
        rows = bad.get(first, np.empty(0, int))[:_NAMED]
        if not len(rows):
            return
        names = [str(name) for name in self.reader.index.subjects[rows]]
        broken = [
            name
            for name, row in zip(names, rows, strict=True)
            if not all(np.isfinite(values).all() for values in self.reader.read(np.array([row])).values())
        ]
        ray.get(self.fit.mailbox.diverged.remote(first, names, broken))

    def _first(self, steps: Iterable[int]) -> int:
        """The first step of all workers."""
        first = torch.tensor(min(steps, default=self.fit.total_steps + 1), device=self.device)
        if self.world > 1:
            torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
        return int(first)

    def _save(self, epoch: int) -> None:
        if self.fit.inside and self.fit.validation.is_due(epoch):
            self._validate(epoch)
        self._write()

    def _write(self) -> None:
        if self.rank == 0:
            self.writer.write(self.state.step, self.state.snapshot())
        self.clock = _Clock()  # the speed is that of the steps

    def _validate(self, epoch: int) -> None:
        """Measures over the validation split with the averaged weights, on draws that never change."""
        self.averaged.load_state_dict(self.state.ema)
        rows = len(self.val.index)
        part = range(rows * self.rank // self.world, rows * (self.rank + 1) // self.world)
        size = self.trainer.part_size(self.world)
        measures = sums(self.recipe, self.averaged, self.val, part, self.trainer, size=size)
        means = self._reduced(torch.stack(list(measures.values()))) / rows
        measured = point(self.state.step, dict(zip(measures, means.tolist(), strict=True)))
        self.state.history.append(measured)
        if self.rank == 0:
            self.fit.validation.picture(self.averaged, self.device, self.state.step, epoch)
            rungs = self.fit.validation.rungs
            if rungs and rungs.quality and epoch in rungs.epochs:
                measured["val_distance"] = rungs.quality(self.averaged, self.device, self.val)
        self._post(measured)

    def _reduced(self, values: Tensor) -> Tensor:
        values = values.clone()
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def _post(self, message: dict[str, Any]) -> None:
        if self.rank == 0:
            self.fit.mailbox.put.remote(message)


class _Writer:
    """Writes checkpoints in a thread of its own, one at a time."""

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def write(self, step: int, snapshot: dict[str, Any]) -> None:
        """Begin to write; waits for the one before, and raises what that met."""
        self.wait()
        self._last = self._pool.submit(self._write, step, snapshot)

    def _write(self, step: int, snapshot: dict[str, Any]) -> None:
        try:
            self._fit.validation.store.write(step, state_bytes(snapshot))
        except UserError as error:
            raise UserError(f"{error}; then run the same command again to continue from the last checkpoint") from error
        ray.get(self._fit.mailbox.put.remote({"saved": step}))

    def check(self) -> None:
        """Raise what the last one met, if it is finished."""
        if self._last and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Until the last one is written."""
        if self._last:
            self._last.result()


def ahead(items: Generator[Any], depth: int) -> Generator[Any]:
    """``items``, made by a thread that is up to ``depth`` ahead; closing this closes ``items`` in that thread."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()
            pool.submit(items.close)
