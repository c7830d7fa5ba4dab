"""A data-parallel training on many GPUs: where its time goes, step by step, with nodes that are lost."""

import math
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 20  # step times drawn at once


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, on what, and how long its parts take.

    Args:
        steps: optimizer steps.
        gpus: workers, one GPU each.
        step_s: seconds of a GPU for its part of a batch.
        jitter: standard deviation of the logarithm of that time: a step takes as long as the slowest worker.
        gradient_bytes: that every worker reduces with all others after a step, in a ring; nothing of it is hidden.
        link_bytes_per_s: of a worker, to the next one in the ring.
        latency_s: of a message in the ring.
        read_bytes: of a step, over all workers; 0 where the samples are kept.
        storage_bytes_per_s: that the storage gives all of them.
        log_every: steps between messages to the driver.
        driver_s: seconds of the driver for one.
        checkpoint_every: steps.
        snapshot_s: that the workers wait for one.
        write_s: until it is written, beside the steps that follow.
        gpus_per_node: that are lost together.
        node_lives_s: the mean time until a node is lost; infinite for never.
        restart_s: until the workers are there again, with the state of the last checkpoint.
    """

    steps: int
    gpus: int
    step_s: float
    jitter: float = 0.02
    gradient_bytes: float
    link_bytes_per_s: float
    latency_s: float = 10e-6
    read_bytes: float = 0.0
    storage_bytes_per_s: float = math.inf
    log_every: int = 10
    driver_s: float
    checkpoint_every: int
    snapshot_s: float
    write_s: float
    gpus_per_node: int = 8
    node_lives_s: float = math.inf
    restart_s: float

    @property
    def reduce_s(self) -> float:
        """Seconds of an all-reduce in a ring: 2 (n - 1) messages of an n-th of the gradient."""
        n = self.gpus
        return 2 * (n - 1) * (self.gradient_bytes / n / self.link_bytes_per_s + self.latency_s)

    @property
    def read_s(self) -> float:
        """Seconds of the storage for a step."""
        return self.read_bytes / self.storage_bytes_per_s


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        seconds: all of it.
        efficiency: the time that the computing alone takes, over that.
        shares: of the time, by what it went into; they add up to 1.
        driver: the share of the time in which the driver is busy with messages.
        lost: nodes.
    """

    seconds: float
    efficiency: float
    shares: dict[str, float]
    driver: float
    lost: int

    @property
    def bottleneck(self) -> str:
        """What takes most of the time, but for the computing."""
        return max((name for name in self.shares if name != "compute"), key=lambda name: self.shares[name])


def simulate(plan: Training, seed: int = 0) -> Outcome:
    """Let a training run."""
    chance = np.random.default_rng(seed)
    spent = dict.fromkeys(["compute", "slowest worker", "all-reduce", "data", "checkpoints", "lost nodes"], 0.0)
    now, done, lost, saved = 0.0, 0, 0, [0.0]  # saved: when the checkpoint of each interval is written
    fails = _next_failure(plan, chance, now)
    while done < plan.steps:
        steps = min(plan.checkpoint_every, plan.steps - done)
        parts = _interval(plan, chance, steps)
        took = sum(parts.values())
        if fails < now + took:
            intact = sum(written <= fails for written in saved) - 1  # the newest checkpoint that is there
            back = max(intact, 0) * plan.checkpoint_every
            lost, saved = lost + 1, saved[: max(intact, 0) + 1]
            spent["lost nodes"] += fails - now + plan.restart_s
            _take_back(spent, plan, done - back)
            now, done = fails + plan.restart_s, back
            fails = _next_failure(plan, chance, now)
            continue
        for name, seconds in parts.items():
            spent[name] += seconds
        now, done = now + took, done + steps
        saved.append(now + plan.write_s)
    messages = plan.steps / plan.log_every * plan.driver_s
    return Outcome(now, plan.steps * plan.step_s / now, {k: v / now for k, v in spent.items()}, messages / now, lost)


def _next_failure(plan: Training, chance: np.random.Generator, now: float) -> float:
    if math.isinf(plan.node_lives_s):
        return math.inf
    return now + chance.exponential(plan.node_lives_s / math.ceil(plan.gpus / plan.gpus_per_node))


def _interval(plan: Training, chance: np.random.Generator, steps: int) -> dict[str, float]:
    """What the steps up to a checkpoint take; data are read while the step before computes."""
    found = dict.fromkeys(["compute", "slowest worker", "all-reduce", "data", "checkpoints"], 0.0)
    for first in range(0, steps, size := max(1, _CHUNK // plan.gpus)):
        count = min(size, steps - first)
        times = plan.step_s * chance.lognormal(-(plan.jitter**2) / 2, plan.jitter, (count, plan.gpus))
        slowest = times.max(axis=1)
        whole = slowest + plan.reduce_s
        found["compute"] += float(times.mean(axis=1).sum())
        found["slowest worker"] += float((slowest - times.mean(axis=1)).sum())
        found["all-reduce"] += count * plan.reduce_s
        found["data"] += float(np.maximum(plan.read_s - whole, 0).sum())
    return {**found, "checkpoints": plan.snapshot_s + max(0.0, plan.write_s - sum(found.values()))}


def _take_back(spent: dict[str, float], plan: Training, steps: int) -> None:
    """Steps that are done again had been in vain: their time is that of the lost node."""
    before = sum(seconds for name, seconds in spent.items() if name != "lost nodes")
    if not steps or not before:
        return
    each = plan.step_s + plan.reduce_s
    share = min(1.0, steps * each / before)
    for name in spent:
        if name != "lost nodes":
            spent["lost nodes"] += spent[name] * share
            spent[name] *= 1 - share
