"""Data-parallel training on Ray Train: any recipe, on shards that are kept or streamed, continued exactly.

The order of the data and every random number are functions of (seed, epoch, draw), and checkpoints are whole or not
there; so a run that is killed anywhere and started again ends with the weights of an undisturbed one (same number of
workers, CPU). What is saved is ours, in files that are written atomically: Ray Train rewrites its own list of
checkpoints in place, and a run whose driver dies in that moment could not be continued.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from voxfleet import storage
from voxfleet.config.resources import ResourcesConfig
from voxfleet.engine import metrics
from voxfleet.engine.cluster import actors, ends_with_job, gpus_per_worker, kill_actors, lacking, ray_errors
from voxfleet.engine.console import Progress, say
from voxfleet.engine.ingest import Split
from voxfleet.engine.mailbox import Mailbox
from voxfleet.engine.validation import Beside, Mosaic, Place, Rungs, Validation
from voxfleet.engine.worker import Fit, work
from voxfleet.errors import UnfitError, UserError, VoxfleetError, WorkersLostError, WorkMissingError
from voxfleet.tracking.base import Tracker
from voxfleet.train.checkpoint import CheckpointStore, Measures, best_step
from voxfleet.train.optim import OptimConfig
from voxfleet.train.state import read_state
from voxfleet.train.step import Recipe, TrainerConfig

_POLL_S, _END_S, _LOOK_S = 0.5, 10.0, 5.0
CONTROLLER = "TrainController"  # Ray Train's actor, in which fit waits; the workers end with it
_WORKER = "RayTrainWorker"


@dataclass(frozen=True)
class Trained:
    """What a fit leaves.

    Attributes:
        state, best: the final state, and that of the best checkpoint.
        history: everything that was measured.
        seconds: how long the fit took, how long until its ``first_step_s``, and how long its workers ``trained_s``.
    """

    state: Mapping[str, Any]
    best: Mapping[str, Any]
    history: list[Measures]
    seconds: dict[str, float]


def fit(
    recipe: Recipe,
    data: Mapping[str, Split],
    *,
    folder: str,
    name: str,
    trainer: TrainerConfig,
    optim: OptimConfig,
    resources: ResourcesConfig,
    tracker: Tracker,
    balanced: bool = False,
    flops: int | None = None,
    mosaic: Mosaic | None = None,
    mosaic_every: int = 0,
    rungs: Rungs | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train ``recipe`` to the end, from the newest checkpoint in ``folder``/``name`` if there is one.

    ``flops`` are those of a sample's step; ``mosaic`` makes a picture of samples every ``mosaic_every`` epochs. With
    ``rungs`` the fit ends early, and another one goes on from there; its workers validate, so that it takes no more
    than they do.

    Raises:
        UserError: if the loss is not finite, a shard cannot be read, or a checkpoint not be written.
        WorkMissingError: if workers were lost too often, or there is no room for those that were lost.
    """
    began = time.time()
    _check_sizes(data, trainer, resources)
    store = CheckpointStore(storage.join(folder, name))
    store.tidy()
    mailbox = Mailbox.options(scheduling_strategy=_here()).remote()  # type: ignore[attr-defined]
    validation = Validation(
        recipe=recipe,
        split=data["val"],
        trainer=trainer,
        store=store,
        mosaic=mosaic,
        mosaic_every=mosaic_every,
        rungs=rungs,
    )
    gpus = gpus_per_worker(resources)
    place = _place(resources, gpus, trainer, inside=rungs is not None)
    job = Fit(
        validation=validation,
        train=data["train"],
        optim=optim,
        balanced=balanced,
        inside=not place.beside,
        threads=resources.cpus_per_worker,
        flops=flops,
        began=began,
        mailbox=mailbox,
    )
    steps_per_epoch = job.total_steps // trainer.epochs
    beside = Beside(validation, steps_per_epoch, place, tracker)
    watch = _Watch(job, beside, progress or Progress(name, job.total_steps, "steps"), tracker, resources)
    with ray_errors():
        _fit_watched(_trainer(job, folder, name, resources, gpus), watch)
    newest = max(store.steps(), default=0)
    if newest < job.last_step:
        raise _not_finite(name, newest, ray.get(mailbox.divergence.remote()), store)
    watch.finish()
    state, best = (read_state(store.read(step)) for step in (newest, best_step(beside.found) or newest))
    seconds = {"fit_s": time.time() - began, **watch.seconds}
    return Trained(state, best, _merged(state["history"], beside.found), seconds)


def _check_sizes(data: Mapping[str, Split], trainer: TrainerConfig, resources: ResourcesConfig) -> None:
    for what, size in (("samples", data["train"].rows), ("draws of trainer.batch_size", trainer.batch_size)):
        if resources.workers > size:
            raise UserError(f"there are {resources.workers} workers for {size} {what}; lower resources.workers")


def _here() -> NodeAffinitySchedulingStrategy:
    """The driver's own node: what stands there is lost with the driver, and not before."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _place(resources: ResourcesConfig, gpus: float, trainer: TrainerConfig, *, inside: bool) -> Place:
    """Beside the workers, where what they leave holds another of their kind, or at least a CPU; or ``inside``."""
    kind, each = ("GPU", gpus) if gpus else ("CPU", resources.cpus_per_worker)
    free = ray.cluster_resources().get(kind, 0) - resources.workers * each
    beside = not inside and free >= (gpus or 1)
    threads = min(resources.cpus_per_worker, int(free)) if beside and not gpus else resources.cpus_per_worker
    return Place(beside=beside, threads=threads, gpus=gpus, size=trainer.part_size(resources.workers))


class _Trainer(TorchTrainer):
    """Ray Train without the processes that it starts and we do not need: each takes seconds of every fit."""

    one_of_many = False

    def _create_default_callbacks(self) -> list[Any]:
        # for datasets, which are not its business here; and to free the room of a run whose controller has died, which
        # is the driver's as well, and ends with it, unless that has other runs
        unused = (DatasetsCallback,) if self.one_of_many else (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if type(callback) not in unused]


def _trainer(job: Fit, folder: str, name: str, resources: ResourcesConfig, gpus: float) -> TorchTrainer:
    system, path = storage.filesystem(folder)
    least = resources.min_workers
    trainer = _Trainer(
        work,
        train_loop_config={"fit": job},
        scaling_config=ScalingConfig(
            num_workers=(least, resources.workers) if least else resources.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=system,
            failure_config=FailureConfig(max_failures=job.validation.trainer.max_failures),
            logging_config=LoggingConfig("CRITICAL"),
        ),
    )
    trainer.one_of_many = job.validation.rungs is not None or not ends_with_job()
    return trainer


def _fit_watched(runner: TorchTrainer, watch: "_Watch") -> None:
    """Run ``fit`` in a thread, and watch from this one.

    In the main thread Ray Train would take over Ctrl-C, for the rest of the process; so it stays ours.
    """
    outcome: Future[ray.train.Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(runner.fit())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while not wait([outcome], timeout=_POLL_S).done:
            watch.read()
        watch.read()
    except BaseException:
        kill_actors(CONTROLLER)
        thread.join(_END_S)  # Ray crashes at times if it is shut down while a thread waits in it
        raise
    if failures := ray.get(watch.job.mailbox.failures.remote()):
        raise failures[0]
    try:
        outcome.result()
    except TrainingFailedError as error:
        if failures := list(getattr(error, "worker_failures", {}).values()):  # a bug of ours would be in the mailbox
            limit = watch.job.validation.trainer.max_failures
            reason = (str(failures[0]).strip().splitlines() or [type(failures[0]).__name__])[-1]
            raise WorkersLostError(
                f"workers were lost more often than trainer.max_failures ({limit}) allows (the last time: {reason}); "
                "run the same command again to continue from the last checkpoint"
            ) from error
        raise
    except ray.exceptions.RayError as error:  # the controller itself
        raise WorkMissingError(
            f"Ray lost the training ({type(error).__name__}); run the same command again to continue from the last "
            "checkpoint"
        ) from error


class _Watch:
    """Shows and records what the workers post, and has their checkpoints validated."""

    def __init__(
        self, job: Fit, beside: Beside, progress: Progress, tracker: Tracker, resources: ResourcesConfig
    ) -> None:
        self.job, self._beside, self._progress, self._tracker = job, beside, progress, tracker
        self._shown: Measures = {}
        self._step: int | None = None
        self._workers: int | None = None
        self.seconds: dict[str, float] = {}
        self._room = _Room(resources, progress.stage)

    def read(self) -> None:
        """Take what has been posted since the last time."""
        for message in ray.get(self.job.mailbox.drain.remote()):
            if "restored" in message:
                self._restored(message["restored"], message["history"], message["workers"])
            elif "saved" in message:
                self._saved(message["saved"])
            elif "warned" in message:
                what = f"step {message['warned']} is being written to a checkpoint"
                say(f"{self._progress.stage}: the cluster is about to take a node away; {what}", level="warning")
            elif "trained_s" in message:
                self.seconds |= message
            elif "first_step_s" in message:
                self.seconds["first_step_s"] = message["first_step_s"]
                self._tracker.log_metrics([message])
            else:
                self._measured(message)
        self._beside.poll()
        self._room.look()

    def _saved(self, step: int) -> None:
        self._tracker.log_reference("checkpoint_newest", self.job.validation.store.uri(step))
        self._beside.saved(step)
        trainer = self.job.validation.trainer
        self._beside.prune(trainer.keep_newest, trainer.keep_best)

    def _restored(self, step: int, history: list[Measures], workers: int) -> None:
        """A group of workers begins: after a restart, at the step of the last checkpoint."""
        if self._step is not None:
            why = "a worker was lost" if workers == self._workers else f"there are {workers} workers now"
            say(f"{self._progress.stage}: {why}; going on from step {step}", level="warning")
        elif step and self.job.validation.rungs is None:
            say(f"{self._progress.stage}: going on from step {step} of {self.job.total_steps}")
        self._progress.skip(step - (self._step or 0))
        self._step, self._workers = step, workers
        self._beside.look()
        for point in history:
            self._record(point)

    def _measured(self, point: Measures) -> None:
        self._record(point)
        step = int(point["step"])
        self._shown |= {key: value for key, value in point.items() if key in _SHOWN}
        metrics.show(self._progress.stage, **point)
        self._progress.advance(step - (self._step or 0), _note(self._shown))
        self._step = step

    def _record(self, point: Measures) -> None:
        if "val_loss" in point:
            self._beside.measured(point)
        else:
            self._tracker.log_metrics([point])

    def finish(self) -> None:
        """Validate what is left, and sum the run up."""
        self._beside.look()
        self._beside.poll(wait=True)
        trainer = self.job.validation.trainer
        self._beside.prune(trainer.keep_newest, trainer.keep_best)
        best = best_step(self._beside.found)
        note = f"validation loss {self._beside.found[best]['val_loss']:.4g} at step {best}" if best else ""
        self._progress.finish(", ".join(filter(None, [_note(self._shown), f"best {note}" if note else ""])))


class _Room:
    """Ends a run that waits for room for its workers in vain: Ray Train itself waits for ever, and says nothing."""

    def __init__(self, resources: ResourcesConfig, name: str) -> None:
        self._resources, self._name = resources, name
        self._looked = self._seen = time.monotonic()
        self._said = False

    def look(self) -> None:
        """See whether there are workers, or room for them.

        Raises:
            WorkMissingError: if there has been neither for longer than ``wait_s``.
        """
        now = time.monotonic()
        if now < self._looked + _LOOK_S:
            return
        self._looked = now
        problem = None if actors(_WORKER, "ALIVE", "PENDING_CREATION") else lacking(self._resources)
        if problem is None:
            self._seen, self._said = now, False
        elif now > self._seen + self._resources.wait_s + _LOOK_S:
            raise WorkMissingError(
                f"{self._name}: {problem}; run the same command again when there is room, with fewer "
                "workers, or with a larger resources.wait_s"
            )
        elif not self._said and now > self._seen + 2 * _LOOK_S:
            say(f"{self._name}: waiting up to {self._resources.wait_s} s: {problem}", level="warning")
            self._said = True


_SHOWN = ("loss", "samples_per_s", "val_loss")


def _note(point: Measures) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in point.items())


def _not_finite(name: str, step: int, found: dict[str, Any], store: CheckpointStore) -> VoxfleetError:
    """Why a fit ended early."""
    if not found:
        return WorkMissingError(f"{name}: ended after step {step} of its training; run the same command again")
    kept = f"the checkpoint of step {step} is kept" if step else "there is no checkpoint yet"
    if found["broken"]:
        return UserError(
            f"{name}: the shards hold numbers that are not finite for {', '.join(found['broken'])}; make the shards "
            f"again without these samples ({kept})"
        )
    return UnfitError(
        f"{name}: the loss is not finite at step {found['step']}, for {', '.join(found['samples'])} ({kept}); lower "
        f"optim.lr or check these samples, and name another run, or remove {store.run} to begin again"
    )


def _merged(history: list[Measures], validations: Mapping[int, Measures]) -> list[Measures]:
    """All points of a run by step; those of the training first."""
    points = [point for point in history if "val_loss" not in point]
    return sorted([*points, *validations.values()], key=lambda point: (point["step"], "val_loss" in point))
