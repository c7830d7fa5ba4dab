"""What a search leaves: the ranked trials, what each costs, the configuration of the best, and the page."""

import contextlib
import dataclasses

import pyarrow as pa
import ray
import torch
import yaml

from voxfleet import storage
from voxfleet.config.jobs import TrainConfig, TuneConfig
from voxfleet.data.shards import table_bytes
from voxfleet.engine.candidates import Found
from voxfleet.engine.cluster import gpus_per_worker, in_words
from voxfleet.engine.console import duration, say
from voxfleet.engine.output import as_document
from voxfleet.engine.trials import Trainer
from voxfleet.errors import UserError
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.summary import summarize
from voxfleet.report.search import TrialRow, page
from voxfleet.search.importance import importance
from voxfleet.search.space import words
from voxfleet.search.study import Study
from voxfleet.search.trials import Trial, pareto, ranked
from voxfleet.tracking.base import Tracker
from voxfleet.tracking.outbox import masked
from voxfleet.train.checkpoint import CheckpointStore
from voxfleet.train.speed import passes_per_s

TABLE, BEST, PAGE = "trials.parquet", "best.yaml", "report.html"
SUMMARY = "search.json"  # the last file
_SHOWN = 10
_SPEED_BATCH = {"cpu": 8, "cuda": 64}


def write_results(study: Study, trainer: Trainer, tracker: Tracker, found: Found, *, wall_s: float, slots: int) -> None:
    """Rank the trials, measure what each costs, and write the results; ``found`` is what the check of the space found.

    Raises:
        UserError: if no trial was scored.
    """
    config, output = trainer.config, trainer.output
    order = ranked(study.trials)
    if not order:
        why = [f"; the first: {words(trial.keys)}: {trial.reason}" for trial in study.trials[:1]]
        raise UserError(f"none of {len(study.trials)} trials could be trained{''.join(why)}")
    order += [trial for trial in study.trials if trial not in order]
    rows, at = _rows(order, study, trainer), trainer.data["train"].rows
    keys = [domain.key for domain in config.search.domains]
    html = page(
        config.name,
        rows,
        metric=config.search.metric,
        keys=keys,
        importance=importance(study.trials, keys, study.rungs[0]),
        facts=_facts(rows, study, at, wall_s, slots),
        removed=[f"{words(entry['keys'])}: {entry['why']}" for entry in found["removed"]],
        merged=[f"{words(entry['keys'])} is {words(entry['same'])}" for entry in found["merged"]],
    )
    results = {
        TABLE: table_bytes(pa.Table.from_pylist([row.record(keys) for row in rows])),
        BEST: _best_yaml(config, order[0], at).encode(),
        PAGE: html.encode(),
    }
    for name, data in results.items():
        storage.write_bytes(storage.join(output.folder, name), data)
        tracker.log_artifact(storage.join(output.folder, name))
    tracker.log_metrics([{"best": order[0].score, "trials": len(order), "wall_s": wall_s}])
    storage.write_json(storage.join(output.folder, SUMMARY), {"asked": config.search.trials, "best": order[0].number})
    for place, row in enumerate(rows[:_SHOWN], start=1):
        score = f"{config.search.metric} {row.shown_score}"
        say(f"{place:>3}. {score}, trial {row.number} ({row.status}): {words(row.keys)}")
    say(f"tune: voxfleet train --config {storage.join(output.folder, BEST)} trains the best; see {PAGE} beside it")


def _rows(order: list[Trial], study: Study, trainer: Trainer) -> list[TrialRow]:
    """The trials as the page shows them."""
    trainings = [trainer.training(trial) for trial in order]
    speeds = _speeds([None if trial.reason else trainer.training(trial).model for trial in order], trainer)
    parameters = [_parameters(training.model) for training in trainings]
    fronts = [False] * len(order)
    for costs in (parameters, [-(speed or 0.0) for speed in speeds]):  # of those that came as far
        for reached in {trial.reached for trial in order if trial.scores}:
            group = [place for place, trial in enumerate(order) if trial.reached == reached and not trial.reason]
            for place, front in zip(group, pareto([(order[p].score, costs[p]) for p in group]), strict=True):
                fronts[place] |= front
    rows = trainer.data["train"].rows
    return [
        TrialRow(
            number=trial.number,
            keys=trial.keys,
            score=trial.score,
            samples=trial.reached * rows,
            first=trial.scores.get(study.rungs[0]),
            status=_status(trial, study),
            curve=_curve(training, trainer, rows),
            parameters=parameters[place],
            steps_per_s=speeds[place],
            trained_s=trial.seconds.get("trained_s", 0.0),
            fit_s=trial.seconds.get("fit_s", 0.0),
            fits=int(trial.seconds.get("fits", 0)),
            front=fronts[place],
        )
        for place, (trial, training) in enumerate(zip(order, trainings, strict=True))
    ]


def _status(trial: Trial, study: Study) -> str:
    if trial.reason:
        return f"failed: {trial.reason}"
    return "finished" if trial.reached == study.rungs[-1] else "stopped early"


def _curve(training: TrainConfig, trainer: Trainer, rows: int) -> list[tuple[int, float]]:
    """(samples, score) of all validations of a trial."""
    steps = -(-rows // training.trainer.batch_size)
    found = CheckpointStore(storage.join(training.output, training.name)).validations()
    metric = trainer.config.search.metric
    return [(step // steps * rows, found[step][metric]) for step in sorted(found) if metric in found[step]]


def _parameters(model: DiT3DConfig) -> int:
    return summarize(lambda: DiT3D(model), (model.in_channels, *model.input_size)).parameters


def _speeds(models: list[DiT3DConfig | None], trainer: Trainer) -> list[float | None]:
    """Denoising steps of one sample a second of each network, measured one after another, with nothing else running."""
    resources, distinct = trainer.config.resources, {str(model.network): model for model in models if model}
    gpus = gpus_per_worker(resources)
    task = _measure_speeds.options(num_cpus=resources.cpus_per_worker, num_gpus=gpus)
    precision = trainer.config.trainer.precision
    found = ray.get(task.remote(list(distinct.values()), precision, resources.cpus_per_worker, gpus > 0))
    speeds = dict(zip(distinct, found, strict=True))
    return [speeds[str(model.network)] if model else None for model in models]


@ray.remote
def _measure_speeds(models: list[DiT3DConfig], precision: str, threads: int, gpu: bool) -> list[float | None]:
    torch.set_num_threads(threads)
    device = torch.device("cuda" if gpu else "cpu")
    return [passes_per_s(model, _SPEED_BATCH[device.type], precision, device) for model in models]


def _facts(rows: list[TrialRow], study: Study, at: int, wall_s: float, slots: int) -> dict[str, str]:
    """Where the time of a search went."""
    fits = sum(row.fits for row in rows)
    trained, taken = sum(row.trained_s for row in rows), sum(row.fit_s for row in rows)
    grid = len(rows) * study.rungs[-1] * at
    seen = sum(row.samples for row in rows)
    return {
        "wall time": duration(wall_s),
        "trials at a time": str(slots),
        "share of it in which workers trained": f"{trained / max(wall_s * slots, 1e-9):.0%}",
        "platform time of a start (to the first step and after the last)": f"{(taken - trained) / max(fits, 1):.1f} s",
        "starts": str(fits),
        "samples seen, of those of all trials to their end": f"{seen:,} of {grid:,} ({seen / grid:.0%})",
        "stopped early": f"{sum(row.status == 'stopped early' for row in rows)} of {len(rows)}",
    }


def _best_yaml(config: TuneConfig, best: Trial, rows: int) -> str:
    """The training of the best trial at its full length, as a configuration file."""
    training = config.trial(best.keys)
    with contextlib.suppress(ValueError):  # pictures may need another sampler with these keys
        training = dataclasses.replace(training, samples=config.samples)
    document = as_document(dataclasses.replace(training, name=f"{config.name}-best", package=None))
    uri = config.tracking.resolved_uri
    if uri and masked(uri) == uri:
        document["tracking"] = {"uri": uri, "experiment": config.tracking.experiment}
    head = [
        f"voxfleet train --config {BEST}",
        f"Hardware: that of the search: {in_words(config.resources)}",
        f"Time: {PAGE}, beside this file, says how long the trial took",
        f"Expect: {config.search.metric} below {best.score:.4g}, which trial {best.number} had after "
        f"{best.reached * rows:,} samples",
    ]
    return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(document, sort_keys=False)
