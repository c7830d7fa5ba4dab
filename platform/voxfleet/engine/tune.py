"""The tune job: latent shards and a search space to ranked trials, the configuration of the best, and a page."""

import math
import time

from voxfleet import storage
from voxfleet.config.jobs import TuneConfig
from voxfleet.data.index import check_trainable, read_index
from voxfleet.data.shards import read_manifest
from voxfleet.engine.candidates import Candidates, say_listed
from voxfleet.engine.cluster import capacity
from voxfleet.engine.console import say
from voxfleet.engine.ingest import describe, open_splits
from voxfleet.engine.job import job_session
from voxfleet.engine.output import Output
from voxfleet.engine.results import SUMMARY, write_results
from voxfleet.engine.trials import Trainer, conduct, send_unsent
from voxfleet.errors import UserError
from voxfleet.search.space import words
from voxfleet.search.study import REDUCTION, Study
from voxfleet.search.trials import Trial, ranked, rungs_of
from voxfleet.tracking.base import Tracker

RECORD, CLOCK, SPACE = "record", "clock.json", "space.json"
_COLUMNS = ("mu", "logvar")
_FEWEST = 2  # latents that have a distance
_FIRST_SHARE = 9  # of the samples of a whole trial, one in so many until it is first scored


def run(config: TuneConfig) -> None:
    """Try what the space holds, and write what came of it."""
    manifest = read_manifest(config.data, "latents")
    output = Output("tune", storage.join(config.output, config.name), config, {"data": manifest.digest})
    output.check()
    if _is_done(output):
        say(f"tune: {output.folder} is complete, nothing to do")
        output.send_unsent()
        send_unsent(output)
        return
    candidates = Candidates(config, manifest)
    candidates.listed()  # a space without anything that can be trained ends here
    splits = read_index(storage.absolute(config.data), manifest, _COLUMNS)
    check_trainable(config.data, manifest, splits)
    if config.search.quality_samples and len(splits["val"]) < _FEWEST:
        raise UserError(
            f"search.quality_samples is {config.search.quality_samples}, but split val of {config.data} has one "
            "latent, and a distance needs two; set it to 0"
        )
    rungs = _rungs(config, len(splits["train"]))
    with job_session(output, workers=True, name=config.name) as tracker:
        candidates.measure(output.folder)
        found = candidates.listed()
        say_listed(found)
        storage.write_json(storage.join(output.folder, SPACE), found)
        data = open_splits(splits, _COLUMNS, config.loading.mode)
        say(f"{config.name}: {describe(data)}; trials are scored after {_counted(rungs, data['train'].rows)} samples")
        tracker.log_dataset("train", config.data, manifest.digest, {"counts": manifest.counts})
        study = Study(storage.join(output.folder, RECORD), config.search, rungs, candidates.network)
        trainer = Trainer(config, manifest, data, rungs, output)
        most = config.search.max_concurrent or math.inf
        clock = _Clock(output.folder, int(min(most, capacity(config.resources))))
        shown = _Shown(config, study, tracker, data["train"].rows, clock)
        conduct(study, lambda: int(min(most, capacity(config.resources))), trainer, shown)
        send_unsent(output)
        write_results(study, trainer, tracker, found, wall_s=clock.wall_s(), slots=clock.slots)


def _is_done(output: Output) -> bool:
    """Whether the search is complete for as many trials as are asked for."""
    uri = storage.join(output.folder, SUMMARY)
    return storage.exists(uri) and storage.read_json(uri)["asked"] == output.config.search.trials


def _rungs(config: TuneConfig, rows: int) -> tuple[int, ...]:
    """Epochs at which trials are scored."""
    search = config.search
    most = math.ceil(search.max_samples / rows) if search.max_samples else config.trainer.epochs
    least = math.ceil(search.min_samples / rows) if search.min_samples else max(1, round(most / _FIRST_SHARE))
    if least > most:
        raise UserError(
            f"search.min_samples is {search.min_samples}, but a whole trial sees {most * rows}; lower it, or raise "
            "search.max_samples"
        )
    return rungs_of(search.scheduler, least, most, REDUCTION)


def _counted(rungs: tuple[int, ...], rows: int) -> str:
    return ", ".join(f"{rung * rows:,}" for rung in rungs)


class _Shown:
    """Shows and records each trial as it pauses or ends."""

    def __init__(self, config: TuneConfig, study: Study, tracker: Tracker, rows: int, clock: "_Clock") -> None:
        self._metric, self._study, self._tracker, self._rows = config.search.metric, study, tracker, rows
        self._clock = clock

    def __call__(self, trial: Trial) -> None:
        if trial.reason:
            say(f"trial {trial.number}: failed: {words(trial.keys)}: {trial.reason}", level="warning")
        else:
            done = "" if trial.reached == self._study.rungs[-1] else ", waits"
            say(
                f"trial {trial.number}: {self._metric} {trial.score:.4g} after {trial.reached * self._rows:,} "
                f"samples{done}: {words(trial.keys)}"
            )
        self._clock.wall_s()
        if best := next(iter(ranked(self._study.trials)), None):
            self._tracker.log_metrics([{"step": sum(len(t.scores) for t in self._study.trials), "best": best.score}])


class _Clock:
    """Seconds of the search, over all of its runs, times the trials that there was room for."""

    def __init__(self, folder: str, slots: int) -> None:
        self._uri, self.slots = storage.join(folder, CLOCK), slots
        self._before = storage.read_json(self._uri)["wall_s"] if storage.exists(self._uri) else 0.0
        self._began = time.monotonic()

    def wall_s(self) -> float:
        """Seconds so far; kept, since a later run goes on from here."""
        wall = self._before + time.monotonic() - self._began
        storage.write_json(self._uri, {"wall_s": wall})
        return wall
