"""The record of a search, a file a trial, from which everything follows: a search that is killed goes on from it."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from voxfleet import storage
from voxfleet.search.searchers import SEARCHERS
from voxfleet.search.space import MOST_LISTED, Keys, Space, combinations, read_space, size
from voxfleet.search.trials import SCHEDULERS, Trial

REDUCTION = 3
TRIES = 500  # proposals in a row that are of no use, until the space counts as used up
METRICS = ("val_loss", *(f"val_loss_t{part}of4" for part in range(1, 5)), "val_error", "val_distance")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is searched, and how.

    Args:
        space: keys of the training configuration, each with its values: choice, grid (crossed with the other grids,
            each as often), uniform, loguniform or integer (the lowest and highest), and, if wanted, when: the values of
            keys before it for which it is searched.
        searcher: random, grid (all combinations), or tpe (Optuna's, which learns from the trials).
        trials: how many; null tries all combinations.
        scheduler: asha (the best third of those that are scored goes on, to three times the samples), or none (every
            trial to its end).
        max_samples: samples that a trial sees to its end; null takes trainer.epochs.
        min_samples: samples that it sees before it is first scored by asha; null takes a ninth of max_samples.
        metric: what decides, less is better: val_loss (of one process only), val_loss_t1of4 to val_loss_t4of4 (of a
            part of time), val_error (compares processes, too), or val_distance (of samples from validation latents).
        quality_samples: samples drawn for val_distance at each score; 0 draws none.
        max_concurrent: trials at a time; null takes as many as there is room for. With 1 a search is reproducible.
        seed: of the proposals.
    """

    space: dict[str, Any] = field(
        default_factory=lambda: {
            "model.window_size": {"choice": [[2, 2, 2], [4, 4, 4], [8, 8, 8], None]},
            "model.depth": {"choice": [4, 8, 12]},
        }
    )
    searcher: str = "random"
    trials: int | None = None
    scheduler: str = "asha"
    max_samples: int | None = None
    min_samples: int | None = None
    metric: str = "val_loss"
    quality_samples: int = 0
    max_concurrent: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("searcher", SEARCHERS), ("scheduler", SCHEDULERS), ("metric", METRICS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name in ("trials", "max_samples", "min_samples", "max_concurrent"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1, or null")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.quality_samples < 0 or self.quality_samples == 1:
            raise ValueError(
                f"quality_samples is {self.quality_samples}; it must be 0, or at least 2: a distance needs two"
            )
        if self.min_samples and self.max_samples and self.min_samples > self.max_samples:
            raise ValueError(f"min_samples is {self.min_samples}; it must be at most max_samples ({self.max_samples})")
        if self.metric == "val_distance" and not self.quality_samples:
            raise ValueError("metric is 'val_distance', which needs samples; set quality_samples, such as 64")
        self._check_size(size(self.domains))

    def _check_size(self, combinations: float) -> None:
        if combinations == float("inf"):
            if self.searcher == "grid":
                ranges = [domain.key for domain in self.domains if domain.listed() is None]
                raise ValueError(f"searcher is 'grid', but {ranges[0]} has a range; list its values, or take random")
            if self.trials is None:
                raise ValueError("trials is null, but the space has no end; say how many trials")
        elif combinations > MOST_LISTED and (self.searcher == "grid" or self.trials is None):
            raise ValueError(f"space has {combinations} combinations, more than {MOST_LISTED}; narrow it")

    @property
    def domains(self) -> Space:
        """The space."""
        return read_space(self.space)


class Study:
    """All trials of a search, in a folder of its run. Threads may share it.

    Args:
        folder: of the trials' files.
        search: its configuration.
        rungs: epochs at which trials are compared; see ``rungs_of``.
        network: what tells a combination from others that train the same; raises ValueError where it is of no use.
    """

    def __init__(
        self, folder: str, search: SearchConfig, rungs: tuple[int, ...], network: Callable[[Keys], str]
    ) -> None:
        self._folder, self._search, self.rungs, self._network = folder, search, rungs, network
        self._space = search.domains
        self._lock = threading.RLock()
        self._running: set[int] = set()
        found = [Trial.read(storage.read_json(storage.join(folder, name))) for name in storage.names(folder)]
        self.trials = sorted(found, key=lambda trial: trial.number)
        self._is_used_up = False

    def next(self) -> Trial | None:
        """A trial to train up to its target, or None: those that an earlier run left, then new ones, then the best.

        None may change when another trial is scored.
        """
        with self._lock:
            trial = next((t for t in self.trials if t.is_open and t.number not in self._running), None)
            trial = trial or self._new() or self._promoted()
            if trial:
                self._running.add(trial.number)
            return trial

    def _new(self) -> Trial | None:
        """A combination that no trial had."""
        wanted = self._search.trials
        if self._is_used_up or (wanted is not None and len(self.trials) >= wanted):
            return None
        known = set()
        for trial in self.trials:
            with contextlib.suppress(ValueError):  # with other resources than it was begun with
                known.add(self._network(trial.keys))
        for proposal, keys in self._proposals():
            with contextlib.suppress(ValueError):
                if self._network(keys) not in known:
                    trial = Trial(number=len(self.trials), proposal=proposal, keys=keys, target=self.rungs[0])
                    self.trials.append(trial)
                    self._write(trial)
                    return trial
        self._is_used_up = True
        return None

    def _proposals(self) -> Iterator[tuple[int, Keys]]:
        """What the searcher proposes next; then, where all can be listed, what it did not think of."""
        first = max((trial.proposal + 1 for trial in self.trials), default=0)
        for proposal in range(first, first + TRIES):
            keys = SEARCHERS[self._search.searcher](self._space, self._search.seed, proposal, self.trials)
            if keys is None:
                return
            yield proposal, keys
        if size(self._space) <= MOST_LISTED:
            yield from ((first, keys) for keys in combinations(self._space))

    def _promoted(self) -> Trial | None:
        chosen = SCHEDULERS[self._search.scheduler](self.trials, self.rungs, REDUCTION)
        return self._changed(chosen[0], target=chosen[1]) if chosen else None

    def scored(self, number: int, score: float, seconds: Mapping[str, float]) -> Trial:
        """The trial reached its target; what it took is added up."""
        with self._lock:
            trial = self.trials[number]
            return self._ended(trial, scores={**trial.scores, trial.target: score}, seconds=_sum(trial, seconds))

    def failed(self, number: int, reason: str) -> Trial:
        """The trial cannot be trained further."""
        with self._lock:
            return self._ended(self.trials[number], reason=reason)

    def _ended(self, trial: Trial, **changes: Any) -> Trial:
        changed = self._changed(trial.number, **changes)
        self._running.discard(trial.number)
        return changed

    def _changed(self, number: int, **changes: Any) -> Trial:
        trial = self.trials[number] = dataclasses.replace(self.trials[number], **changes)
        self._write(trial)
        return trial

    def _write(self, trial: Trial) -> None:
        storage.write_json(storage.join(self._folder, f"{trial.number:05d}.json"), trial.document())


def _sum(trial: Trial, seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: trial.seconds.get(name, 0.0) + seconds.get(name, 0.0) for name in {**trial.seconds, **seconds}}
