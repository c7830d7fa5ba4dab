"""Data-parallel training on Ray Train: any recipe, on data that is read once and kept.

The order of the data and every random number are functions of (seed, epoch, draw), so a run that is killed and started
again ends with the weights of an undisturbed one (same number of workers, CPU).
"""

import os
import tempfile
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from voxfleet import storage
from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.plan import epoch_order, steps_per_epoch, worker_slice
from voxfleet.diffusion.noise import Draws
from voxfleet.engine.cluster import gpus_per_worker, ray_errors
from voxfleet.engine.console import Progress
from voxfleet.engine.ingest import Kept
from voxfleet.errors import UserError
from voxfleet.tracking.base import Tracker
from voxfleet.train.optim import OptimConfig
from voxfleet.train.state import TrainState, read_state
from voxfleet.train.step import Batch, Recipe, TrainerConfig, autocast, train_step

STATE_FILE = "state.pt"
_MAX_FAILURES = 3
_POLL_S = 0.5
_VALIDATION_EPOCH = 2**31  # an epoch number of its own: validation draws are the same at every validation


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the workers are given."""

    recipe: Recipe
    train: Kept
    val: Kept
    trainer: TrainerConfig
    optim: OptimConfig
    threads: int
    mailbox: Any

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return steps_per_epoch(self.train.rows, self.trainer.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.trainer.epochs * self.steps_per_epoch


@ray.remote(num_cpus=0)
class Mailbox:
    """Carries logged points from the first worker to the driver, which shows and records them."""

    def __init__(self) -> None:
        self._points: list[dict[str, float]] = []

    def put(self, point: dict[str, float]) -> None:
        """Leave a point."""
        self._points.append(point)

    def drain(self) -> list[dict[str, float]]:
        """Take all points."""
        points, self._points = self._points, []
        return points


def fit(
    recipe: Recipe,
    data: dict[str, Kept],
    *,
    folder: str,
    name: str,
    trainer: TrainerConfig,
    optim: OptimConfig,
    resources: ResourcesConfig,
    tracker: Tracker,
) -> dict[str, Any]:
    """Train ``recipe`` to the end, from the newest checkpoint in ``folder``/``name`` if there is one.

    Returns the final state: ``model``, ``ema``, ``history`` ... (see ``TrainState``).

    Raises:
        UserError: if the loss is not finite.
    """
    gpus = gpus_per_worker(resources)
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]
    job = Fit(
        recipe=recipe,
        train=data["train"],
        val=data["val"],
        trainer=trainer,
        optim=optim,
        threads=resources.cpus_per_worker,
        mailbox=mailbox,
    )
    system, path = storage.filesystem(folder)
    runner = TorchTrainer(
        _work,
        train_loop_config={"fit": job},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=system,
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            logging_config=LoggingConfig("CRITICAL"),
        ),
    )
    watch = _Watch(mailbox, Progress(name, job.total_steps, "steps"), tracker)
    with ray_errors():
        result = _fit_watched(runner, watch)
    saved = _read_checkpoint(result.checkpoint) if result.checkpoint else {"step": 0}
    if saved["step"] < job.total_steps:
        raise UserError(
            f"{name}: the loss is not finite after step {saved['step']} (the last checkpoint); lower optim.lr or check "
            f"the data, and remove {storage.join(folder, name)} to begin again"
        )
    watch.finish()
    return dict(saved)


def _fit_watched(runner: TorchTrainer, watch: "_Watch") -> ray.train.Result:
    """Run ``fit`` in a thread, and watch from this one.

    In the main thread Ray Train would take over Ctrl-C, for the rest of the process; so it stays ours.
    """
    outcome: Future[ray.train.Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(runner.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while True:
        done = wait([outcome], timeout=_POLL_S).done
        watch.read()
        if done:
            return outcome.result()


class _Watch:
    """Shows and records the points that the workers post."""

    def __init__(self, mailbox: Any, progress: Progress, tracker: Tracker) -> None:
        self._mailbox, self._progress, self._tracker = mailbox, progress, tracker
        self._last: dict[str, float] = {}

    def read(self) -> None:
        """Take what has been posted since the last time; the first point is where the run starts."""
        for point in ray.get(self._mailbox.drain.remote()):
            if "step" not in self._last:
                self._progress.skip(int(point["step"]))
            else:
                self._tracker.log_metrics([point])
                self._progress.advance(int(point["step"] - self._last["step"]), _note(self._last | point))
            self._last |= point

    def finish(self) -> None:
        """Sum the run up."""
        self._progress.finish(_note(self._last) or "already trained")


def _note(point: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in point.items() if key not in ("step", "epoch"))


def _read_checkpoint(checkpoint: Checkpoint) -> Any:
    with checkpoint.as_directory() as folder:
        return read_state(storage.read_bytes(os.path.join(folder, STATE_FILE)))


# --- in the workers -------------------------------------------------------------------------------------------------


def _work(config: dict[str, Any]) -> None:
    job: Fit = config["fit"]
    torch.set_num_threads(job.threads)
    worker = _Worker(job)
    worker.restore()
    worker.run()


class _Worker:
    """One rank of a fit."""

    def __init__(self, job: Fit) -> None:
        self.job = job
        context = ray.train.get_context()
        self.world, self.rank = context.get_world_size(), context.get_world_rank()
        self.device = ray.train.torch.get_device()
        self.train, self.val = job.train.arrays(), job.val.arrays()
        torch.manual_seed(job.trainer.seed)
        self.state = TrainState.create(job.recipe.build().to(self.device), job.optim)
        self.averaged = job.recipe.build().to(self.device).eval().requires_grad_(False)
        self.network: nn.Module = self.state.model
        if self.world > 1:
            self.network = DistributedDataParallel(self.state.model)
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, samples since the last log
        self.clock = time.monotonic()

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                self.state.load_bytes(storage.read_bytes(os.path.join(folder, STATE_FILE)))
        if self.world > 1:
            self._settle_buckets()

    def _settle_buckets(self) -> None:
        """DDP orders its gradient buckets anew in the second pass: do both before the first real step.

        Otherwise, with three workers or more, a resumed run sums its first gradient in another order.
        """
        batch, draws = self._batch(self.train, np.zeros(1, dtype=np.int64), 0, 0)
        for _ in range(2):
            (self.job.recipe.loss(self.network, batch, draws).sum() * 0.0).backward()
        self.state.optimizer.zero_grad(set_to_none=True)

    def run(self) -> None:
        """All steps that are left."""
        trainer, per_epoch = self.job.trainer, self.job.steps_per_epoch
        self._post({"step": self.state.step})
        while self.state.step < self.job.total_steps:
            epoch = self.state.step // per_epoch
            order = epoch_order(self.job.train.rows, trainer.seed, epoch)
            for position in range(per_epoch):
                self._step(order, epoch, position)
                # before a checkpoint too: what is logged must not depend on where a run was interrupted
                last = position == per_epoch - 1 and self._is_due(epoch + 1, trainer.checkpoint_every)
                if (last or self.state.step % trainer.log_every == 0) and not self._log():
                    return
            if self._is_due(epoch + 1, trainer.validate_every):
                self._validate()
            if self._is_due(epoch + 1, trainer.checkpoint_every):
                self._checkpoint(epoch + 1)

    def _is_due(self, epoch: int, every: int) -> bool:
        return epoch % every == 0 or epoch == self.job.trainer.epochs

    def _step(self, order: np.ndarray, epoch: int, position: int) -> None:
        size = self.job.trainer.batch_size
        part = worker_slice(len(order), size, position, self.world, self.rank)
        samples = part.stop - part.start
        rows = order[part] if samples else order[:1]
        batch, draws = self._batch(self.train, rows, epoch, part.start)
        whole = min(size, len(order) - position * size)
        loss = train_step(
            self.state,
            self.network,
            self.job.recipe,
            batch,
            draws,
            scale=self.world / whole if samples else 0.0,
            total_steps=self.job.total_steps,
            optim=self.job.optim,
            precision=self.job.trainer.precision,
        )
        if samples:
            self.sums += torch.stack([loss.double(), torch.tensor(samples, dtype=torch.float64, device=self.device)])

    def _batch(self, data: dict[str, np.ndarray], rows: np.ndarray, epoch: int, start: int) -> tuple[Batch, Draws]:
        batch = {name: torch.from_numpy(values[rows]).to(self.device) for name, values in data.items()}
        index = torch.arange(start, start + len(rows), device=self.device)
        return batch, Draws(self.job.trainer.seed, epoch, index)

    def _log(self) -> bool:
        """Log the mean loss since the last log; False if it is not finite."""
        loss, samples = self._reduced(self.sums).tolist()
        now = time.monotonic()
        point = {"step": self.state.step, "loss": loss / samples}
        self.sums.zero_()
        if not np.isfinite(loss):
            return False
        self.state.history.append(point)
        self._post({**point, "samples_per_s": samples / (now - self.clock)})
        self.clock = now
        return True

    @torch.no_grad()
    def _validate(self) -> None:
        """Measures over the validation split with the averaged weights, on draws that never change."""
        self.averaged.load_state_dict(self.state.ema)
        part = worker_slice(self.job.val.rows, self.job.val.rows, 0, self.world, self.rank)
        size = -(-self.job.trainer.batch_size // self.world)
        measures: dict[str, Tensor] = {}
        for start in range(part.start, max(part.stop, part.start + 1), size):
            rows = np.arange(start, min(start + size, part.stop))
            counted = len(rows) > 0
            rows = rows if counted else np.zeros(1, dtype=np.int64)  # a rank without rows still names the measures
            batch, draws = self._batch(self.val, rows, _VALIDATION_EPOCH, start)
            with autocast(self.device, self.job.trainer.precision):
                values = self.job.recipe.validate(self.averaged, batch, draws)
            for name, value in values.items():
                total = value.double().sum() * float(counted)
                measures[name] = measures.get(name, torch.zeros_like(total)) + total
        sums = self._reduced(torch.stack(list(measures.values()))) / self.job.val.rows
        point = {"step": self.state.step, **{f"val_{n}": v for n, v in zip(measures, sums.tolist(), strict=True)}}
        self.state.history.append(point)
        self._post(point)

    def _checkpoint(self, epoch: int) -> None:
        metrics = {"step": self.state.step, "epoch": epoch}
        if self.rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, STATE_FILE).write_bytes(self.state.to_bytes())
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    def _reduced(self, sums: Tensor) -> Tensor:
        sums = sums.clone()
        if self.world > 1:
            torch.distributed.all_reduce(sums)
        return sums

    def _post(self, point: dict[str, float]) -> None:
        if self.rank == 0:
            self.job.mailbox.put.remote(point)
