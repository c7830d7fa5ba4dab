"""A data-parallel training on many GPUs: where its time goes, step by step, with nodes that are lost."""

import math
from dataclasses import dataclass

import numpy as np

from voxfleet.errors import UserError
from voxfleet.growth.overheads import Overheads, check_numbers

_CHUNK = 1 << 20  # step times drawn at once
_MOST_LIVES = 4  # of the nodes together, that an interval between checkpoints may take
_STEPS = ("compute", "slowest worker", "all-reduce", "data")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, and how long its parts take: set what you have measured.

    The defaults are a DiT3D-S (12 blocks of 384) on latents of (4, 8, 14, 8) in patches of 2, with 256 samples a GPU in
    a step, compiled, as measured on one H100; network, storage and how long nodes live are assumed.

    Args:
        steps: optimizer steps.
        step_s: seconds of a GPU for its part of a batch.
        jitter: standard deviation of the logarithm of that time: a step takes as long as the slowest worker.
        gradient_bytes: that every worker reduces with all others, in a ring.
        overlap: the share of a step's time, that of the backward pass, beside which the gradients are reduced.
        link_bytes_per_s: of a worker, to the next one in the ring.
        latency_s: of a message in the ring.
        read_bytes: of a step, of each worker; 0 where the samples are kept.
        storage_bytes_per_s: that the storage gives all of them.
        log_every: steps between messages to the driver.
        checkpoint_every: steps.
        snapshot_s: that the workers wait for one.
        state_bytes: of a checkpoint, which is written beside the steps that follow.
        gpus_per_node: that are lost together.
        node_lives_s: the mean time until a node is lost; infinite for never.
        restart_s: until the workers are there again, with the state of the last checkpoint.
    """

    steps: int = 100_000
    step_s: float = 0.027
    jitter: float = 0.02
    gradient_bytes: float = 1.3e8
    overlap: float = 0.5
    link_bytes_per_s: float = 2.0e10
    latency_s: float = 1.0e-5
    read_bytes: float = 0.0
    storage_bytes_per_s: float = 5.0e9
    log_every: int = 50
    checkpoint_every: int = 2000
    snapshot_s: float = 0.1
    state_bytes: float = 5.2e8
    gpus_per_node: int = 8
    node_lives_s: float = 86_400.0
    restart_s: float = 120.0

    def __post_init__(self) -> None:
        zero = (
            "jitter",
            "gradient_bytes",
            "overlap",
            "latency_s",
            "read_bytes",
            "snapshot_s",
            "state_bytes",
            "restart_s",
        )
        check_numbers(self, zero, may_be_infinite=("node_lives_s",))
        if self.overlap > 1:
            raise ValueError(f"overlap is {self.overlap}; it is a share, at most 1")

    def reduce_s(self, gpus: int) -> float:
        """Seconds that a step waits for an all-reduce in a ring of n: 2 (n - 1) messages of an n-th of the gradient."""
        whole = 2 * (gpus - 1) * (self.gradient_bytes / gpus / self.link_bytes_per_s + self.latency_s)
        return max(0.0, whole - self.overlap * self.step_s)

    def read_s(self, gpus: int) -> float:
        """Seconds of the storage for a step of all workers."""
        return gpus * self.read_bytes / self.storage_bytes_per_s


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


def simulate(plan: Training, costs: Overheads, gpus: int, seed: int = 0) -> Outcome:
    """Let a training run on so many ``gpus``.

    Raises:
        UserError: if nodes are lost so often that it would not end.
    """
    return _Run(plan, costs, gpus, seed).outcome()


class _Run:
    def __init__(self, plan: Training, costs: Overheads, gpus: int, seed: int) -> None:
        self.plan, self.costs, self.gpus = plan, costs, gpus
        self.chance = np.random.default_rng(seed)
        self.spent = dict.fromkeys([*_STEPS, "checkpoints", "lost nodes"], 0.0)

    def outcome(self) -> Outcome:
        plan, spent = self.plan, self.spent
        self._check_ends()
        now, done, lost = 0.0, 0, 0
        saved = [0.0]  # when the checkpoint after each interval is written
        fails = self._next_failure(now)
        while done < plan.steps:
            steps = min(plan.checkpoint_every, plan.steps - done)
            parts = self._interval(steps)
            took = sum(parts.values())
            if fails < now + took:
                saved = [written for written in saved if written <= fails] or [0.0]
                there = (len(saved) - 1) * plan.checkpoint_every
                self._take_back(done - there)
                spent["lost nodes"] += fails - now + plan.restart_s
                now, done, lost = fails + plan.restart_s, there, lost + 1
                fails = self._next_failure(now)
                continue
            for name, seconds in parts.items():
                spent[name] += seconds
            now, done = now + took, done + steps
            saved.append(now + plan.state_bytes / self.costs.bytes_per_s)
        messages_s = plan.steps / plan.log_every * self.costs.message_s
        shares = {name: seconds / now for name, seconds in spent.items()}
        return Outcome(now, plan.steps * plan.step_s / now, shares, messages_s / now, lost)

    def _check_ends(self) -> None:
        """An interval is done again until no node is lost in it: e^(interval / life) times."""
        plan = self.plan
        steps_s = min(plan.checkpoint_every, plan.steps) * self._step_s
        interval_s = plan.snapshot_s + max(steps_s, plan.state_bytes / self.costs.bytes_per_s)
        if interval_s > _MOST_LIVES * self._life_s:
            raise UserError(
                f"on {self.gpus} GPUs a node is lost every {self._life_s:.0f} s, and a checkpoint is written every "
                f"{interval_s:.0f} s: the training would never end; lower training.checkpoint_every"
            )

    @property
    def _step_s(self) -> float:
        """About what a step takes."""
        plan, gpus = self.plan, self.gpus
        return max(plan.step_s + plan.reduce_s(gpus), plan.read_s(gpus))

    @property
    def _life_s(self) -> float:
        """The mean time until any node is lost."""
        return self.plan.node_lives_s / math.ceil(self.gpus / self.plan.gpus_per_node)

    def _next_failure(self, now: float) -> float:
        return math.inf if math.isinf(self._life_s) else now + self.chance.exponential(self._life_s)

    def _interval(self, steps: int) -> dict[str, float]:
        """What the steps up to a checkpoint take; data are read while the step before computes."""
        plan, found = self.plan, dict.fromkeys(_STEPS, 0.0)
        reduce_s, read_s = plan.reduce_s(self.gpus), plan.read_s(self.gpus)
        for first in range(0, steps, size := max(1, _CHUNK // self.gpus)):
            count = min(size, steps - first)
            times = plan.step_s * self.chance.lognormal(-(plan.jitter**2) / 2, plan.jitter, (count, self.gpus))
            slowest, mean = times.max(axis=1), times.mean(axis=1)
            found["compute"] += float(mean.sum())
            found["slowest worker"] += float((slowest - mean).sum())
            found["all-reduce"] += count * reduce_s
            found["data"] += float(np.maximum(read_s - slowest - reduce_s, 0).sum())
        writes_s = plan.state_bytes / self.costs.bytes_per_s  # the next one waits for the one before
        return {**found, "checkpoints": plan.snapshot_s + max(0.0, writes_s - sum(found.values()))}

    def _take_back(self, steps: int) -> None:
        """Steps that are done again had been in vain: their time goes to the lost nodes."""
        useful = sum(self.spent.values()) - self.spent["lost nodes"]
        share = min(1.0, steps * self._step_s / useful) if useful else 0.0
        for name in (*_STEPS, "checkpoints"):
            self.spent["lost nodes"] += self.spent[name] * share
            self.spent[name] *= 1 - share
