"""A campaign on many GPUs: what holds it up, and from which size on."""

import math
from dataclasses import dataclass

import numpy as np

from voxfleet.growth.events import Clock, Server

CALLS = 2  # of a worker, so that it need not wait for the driver


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What is made, on what, and how long its parts take.

    Args:
        samples: to make.
        gpus: workers that draw and decode, one GPU each.
        batch: samples that a worker makes at once.
        draw_s: seconds of a GPU for a batch.
        jitter: standard deviation of the logarithm of that time.
        start_s: until a worker has loaded its packages and made its first, compiled, call.
        gpus_per_node: that share a network link.
        sample_bytes: of a sample, as it goes from its GPU to a writer.
        link_bytes_per_s: of a node.
        write_s: seconds of a writer (a CPU core) for a sample: check, compress.
        writers: CPU cores.
        puts: requests for a sample: its image, and what stands beside it.
        put_s: how long a writer waits for one.
        puts_per_s: that the storage takes.
        driver_s: seconds of the driver for a call of a worker that came back.
        shard: samples that are committed together.
        commit_s: seconds of a commit.
        commits: at once.
        finish_s: seconds of the driver for each sample at the end: the manifest.
    """

    samples: int
    gpus: int
    batch: int
    draw_s: float
    jitter: float = 0.05
    start_s: float
    gpus_per_node: int = 8
    sample_bytes: float
    link_bytes_per_s: float
    write_s: float
    writers: int
    puts: int = 2
    put_s: float
    puts_per_s: float
    driver_s: float
    shard: int = 512
    commit_s: float
    commits: int = 4
    finish_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        seconds: all of it.
        efficiency: the time that its GPUs alone would take, over that.
        busy: the share of the time in which each part worked.
        bottleneck: the part that worked most.
    """

    seconds: float
    efficiency: float
    busy: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The part that worked most."""
        return max(self.busy, key=lambda name: self.busy[name])


def simulate(plan: Campaign, seed: int = 0) -> Outcome:
    """Let a campaign run: the order of its parts, and where they wait, are those of ``engine/pipeline.py``."""
    return _Run(plan, seed).outcome()


class _Run:
    def __init__(self, plan: Campaign, seed: int) -> None:
        self.plan, self.clock = plan, Clock()
        self.gpus = [Server(self.clock, 1) for _ in range(plan.gpus)]
        self.links = [Server(self.clock, 1) for _ in range(math.ceil(plan.gpus / plan.gpus_per_node))]
        self.driver, self.storage = Server(self.clock, 1), Server(self.clock, 1)
        self.writers, self.commits = Server(self.clock, plan.writers), Server(self.clock, plan.commits)
        self.left, self.uncommitted = math.ceil(plan.samples / plan.batch), 0
        self.asking: list[int] = []  # workers that could take a batch, were there no row before the writers
        self.chance = np.random.default_rng(seed)

    def outcome(self) -> Outcome:
        plan = self.plan
        for number in range(plan.gpus):
            self.clock.after(plan.start_s, lambda number=number: [self._give(number) for _ in range(CALLS)])  # type: ignore[misc]
        seconds = self.clock.run() + plan.samples * plan.finish_s
        alone = plan.samples / plan.batch * plan.draw_s / plan.gpus
        busy = {
            "GPUs": sum(gpu.busy_s for gpu in self.gpus) / plan.gpus / seconds,
            "network": max(link.share(seconds) for link in self.links),
            "writers": self.writers.share(seconds),
            "storage requests": self.storage.share(seconds),
            "driver": (self.driver.busy_s + plan.samples * plan.finish_s) / seconds,
            "commits": self.commits.share(seconds),
        }
        return Outcome(seconds, alone / seconds, busy)

    def _give(self, number: int) -> None:
        """Give a worker a batch, where there is one left, and no row before the writers."""
        if not self.left:
            return
        if self.writers.waiting >= self.plan.writers:
            self.asking.append(number)
            return
        self.left -= 1
        seconds = self.plan.draw_s * self.chance.lognormal(-(self.plan.jitter**2) / 2, self.plan.jitter)
        self.gpus[number].do(seconds, lambda: self.driver.do(self.plan.driver_s, lambda: self._drawn(number)))

    def _drawn(self, number: int) -> None:
        self._give(number)
        plan = self.plan
        link = self.links[number // plan.gpus_per_node]
        link.do(plan.batch * plan.sample_bytes / plan.link_bytes_per_s, lambda: self._write())

    def _write(self) -> None:
        plan = self.plan
        self.writers.do(plan.batch * (plan.write_s + plan.puts * plan.put_s), lambda: self._stored())

    def _stored(self) -> None:
        plan = self.plan
        while self.asking and self.writers.waiting < plan.writers:
            self._give(self.asking.pop(0))
        requests = plan.batch * plan.puts / plan.puts_per_s
        self.storage.do(requests, lambda: self.driver.do(plan.driver_s, lambda: self._kept()))

    def _kept(self) -> None:
        self.uncommitted += self.plan.batch
        while self.uncommitted >= self.plan.shard:
            self.uncommitted -= self.plan.shard
            self.commits.do(self.plan.commit_s, lambda: None)
