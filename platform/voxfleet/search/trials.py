"""Trials, who goes on, and who is best: decisions without effects."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from voxfleet.search.space import Keys


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination, and how far it came. Lengths of training are epochs: in samples, any batch size compares.

    Attributes:
        number: of the trial, from 0.
        proposal: number of the proposal that it came from: some are passed over.
        keys: the combination.
        target: epochs that it is to reach.
        scores: by the epochs after which it was scored.
        reason: why it failed, if it did.
        seconds: what it took.
    """

    number: int
    proposal: int
    keys: Keys
    target: int
    scores: dict[int, float] = field(default_factory=dict)
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def reached(self) -> int:
        """Epochs after which it was last scored."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float:
        """The last score; infinite where there is none."""
        return self.scores[self.reached] if self.scores else math.inf

    @property
    def is_open(self) -> bool:
        """Whether it is to be trained further."""
        return not self.reason and self.reached < self.target

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "scores": [list(point) for point in sorted(self.scores.items())]}

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Trial":
        """From ``document``."""
        return cls(**{**document, "scores": {epochs: score for epochs, score in document["scores"]}})


# of the trials, the epochs at which they are compared (the last is the end), and the reduction: who goes how far
Scheduler = Callable[[Sequence[Trial], Sequence[int], int], tuple[int, int] | None]


def promotion(trials: Sequence[Trial], rungs: Sequence[int], reduction: int) -> tuple[int, int] | None:
    """Asynchronous successive halving: the number of the trial that goes on, and to which rung; None for none.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), algorithm 2: of the trials that were
    scored at a rung, the best part (one in ``reduction``) goes on to the next. A trial that waits keeps its checkpoint,
    so that one which came early, or late, has the same chance. Where nothing else is left, the best goes on to the end.
    """
    for place in reversed(range(len(rungs) - 1)):
        there = ranked([trial for trial in trials if rungs[place] in trial.scores], at=rungs[place])
        for trial in there[: len(there) // reduction]:
            if trial.target == rungs[place]:
                return trial.number, rungs[place + 1]
    leader = next(iter(ranked(trials)), None)
    if leader is None or any(trial.is_open for trial in trials) or leader.reached >= rungs[-1]:
        return None
    return leader.number, rungs[rungs.index(leader.reached) + 1]


def to_the_end(trials: Sequence[Trial], rungs: Sequence[int], reduction: int) -> None:
    """Nothing waits, so nothing is to go on."""


SCHEDULERS: dict[str, Scheduler] = {"asha": promotion, "none": to_the_end}


def rungs_of(scheduler: str, least: int, most: int, reduction: int) -> tuple[int, ...]:
    """Epochs at which trials are compared: ``most`` at the end, a part of that before it, and so on, to ``least``."""
    parts = 1 if scheduler == "none" else 1 + int(math.log(most / least) / math.log(reduction) + 1e-9)
    return tuple(sorted({max(least, round(most / reduction**place)) for place in range(parts)}))


def ranked(trials: Sequence[Trial], at: int | None = None) -> list[Trial]:
    """The best first: by their score ``at`` these epochs, or else those that came farthest before the others."""

    def place(trial: Trial) -> tuple[float, ...]:
        return (trial.scores[at], trial.number) if at else (-trial.reached, trial.score, trial.number)

    return sorted((trial for trial in trials if trial.scores and not trial.reason), key=place)


def pareto(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Which points no other is at least as good as in all, and better in one; less is better."""

    def beats(other: tuple[float, ...], point: tuple[float, ...]) -> bool:
        return other != point and all(a <= b for a, b in zip(other, point, strict=True))

    return [not any(beats(other, point) for other in points) for point in points]
