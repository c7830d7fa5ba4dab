"""Trials on the cluster: as many as there is room for, each a training of its own that pauses where it is scored."""

import math
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from voxfleet import storage
from voxfleet.config.jobs import TrainConfig, TuneConfig
from voxfleet.data.shards import Manifest
from voxfleet.engine.cluster import kill_actors
from voxfleet.engine.console import Quiet, say
from voxfleet.engine.ingest import Split
from voxfleet.engine.job import recorded
from voxfleet.engine.mosaic import SampleDistance
from voxfleet.engine.output import Output
from voxfleet.engine.train import recipe_of
from voxfleet.engine.training import CONTROLLER, fit
from voxfleet.engine.validation import Rungs
from voxfleet.engine.worker import WorkerError
from voxfleet.errors import UnfitError, WorkersLostError
from voxfleet.search.study import Study
from voxfleet.search.trials import Trial

TRIALS = "trials"
_MOST, _LOOK_S, _END_S = 1024, 1.0, 20  # threads, and seconds

Scored = tuple[float, dict[str, float]]  # a score, and what it took


def conduct(
    study: Study, slots: Callable[[], int], train: Callable[[Trial], Scored], ended: Callable[[Trial], None]
) -> None:
    """Have trials of ``study`` trained, up to ``slots()`` at a time, until none is left; ``ended`` is told of each.

    A trial that cannot be trained is recorded with its reason, as is one that fails by a bug where others did not; any
    other error ends the search, which goes on from its record.
    """
    running: dict[Future[Scored], Trial] = {}
    pool = ThreadPoolExecutor(_MOST, thread_name_prefix="trial")
    try:
        while True:
            while len(running) < max(1, slots()) and (trial := study.next()):
                running[pool.submit(train, trial)] = trial
            if not running:
                return
            for future in wait(running, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done:
                ended(_end(study, running.pop(future), future))
    except BaseException:
        for _ in range(_END_S):  # some may only be starting
            kill_actors(CONTROLLER)
            if not wait(running, timeout=1).not_done:
                break
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end(study: Study, trial: Trial, future: "Future[Scored]") -> Trial:
    try:
        return study.scored(trial.number, *future.result())
    except (UnfitError, WorkersLostError) as error:
        return study.failed(trial.number, str(error).partition("; ")[0])  # what the training advises is not for a trial
    except WorkerError as error:
        if not any(other.scores for other in study.trials):
            raise  # so would the next one
        say(str(error), level="warning")
        return study.failed(trial.number, str(error).strip().splitlines()[-1])


@dataclass(frozen=True)
class Trainer:
    """Trains trials of the search ``output``, on ``data`` that all of them share."""

    config: TuneConfig
    manifest: Manifest
    data: dict[str, Split]
    rungs: tuple[int, ...]
    output: Output

    def training(self, trial: Trial) -> TrainConfig:
        """The configuration of a trial."""
        training = self.config.trial(trial.keys)
        return replace(
            training,
            name=f"{trial.number:05d}",
            output=storage.join(self.output.folder, TRIALS),
            package=None,
            trainer=replace(training.trainer, epochs=self.rungs[-1]),
            tracking=replace(training.tracking, flush_s=0),  # a store that fails delays no other trial: see send_unsent
        )

    def recorded_in(self, trial: Trial) -> Output:
        """The folder and record of a trial."""
        config = self.training(trial)
        folder = storage.join(config.output, config.name)
        return Output("train", folder, config, self.output.inputs, parent=self.output)

    def _quality(self, config: TrainConfig) -> SampleDistance | None:
        number = self.config.search.quality_samples
        return SampleDistance(recipe_of(config, self.manifest), self.manifest, number) if number else None

    def __call__(self, trial: Trial) -> Scored:
        """Train a trial to its target, from where it is, and score it."""
        config = self.training(trial)
        with recorded(self.recorded_in(trial), f"{self.config.name}-{config.name}") as tracker:
            trained = fit(
                recipe_of(config, self.manifest),
                self.data,
                folder=storage.absolute(config.output),
                name=config.name,
                trainer=config.trainer,
                optim=config.optim,
                resources=config.resources,
                tracker=tracker,
                balanced=config.loading.balanced,
                rungs=Rungs(epochs=self.rungs, until=trial.target, quality=self._quality(config)),
                progress=Quiet(f"trial {trial.number}", 0, ""),
            )
        step = trained.state["step"]
        measured = next(point for point in trained.history if point["step"] == step and "val_loss" in point)
        metric = self.config.search.metric
        if not math.isfinite(measured[metric]):
            raise UnfitError(f"{metric} is {measured[metric]} at step {step}")
        return measured[metric], {**trained.seconds, "fits": 1}


def send_unsent(search: Output) -> None:
    """Send what the trials of ``search`` could not record, until the store takes nothing."""
    folder = storage.join(search.folder, TRIALS)
    for name in storage.names(folder):
        if not Output("train", storage.join(folder, name), search.config).send_unsent():
            return
