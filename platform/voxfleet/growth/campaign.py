"""A campaign on many GPUs: what holds it up, and from which size on."""

import functools
import math
from dataclasses import dataclass

import numpy as np

from voxfleet.growth.events import Clock, Server
from voxfleet.growth.overheads import Overheads, check_numbers

CALLS = 2  # of a worker, so that it need not wait for the driver


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What a campaign makes, and how long its parts take: set what you have measured.

    The defaults are volumes of 64x112x64 by a DiT3D-S and MAISI's autoencoder on H100s: drawing and decoding as was
    measured on one, with 50 steps; checks and compression on a core of an EPYC. Network and storage are assumed.

    Args:
        total: samples to make.
        batch: samples that a worker makes at once.
        draw_s: seconds of a GPU for a batch, with decoding.
        jitter: standard deviation of the logarithm of that time.
        start_s: until a worker has loaded its packages and made its first, compiled, call.
        gpus_per_node: that share a network link.
        sample_bytes: of a sample, as it goes from its GPU to a writer.
        link_bytes_per_s: of a node.
        write_s: seconds of a writer (a CPU core) for a sample: check, compress.
        writers_per_gpu: CPU cores that write, over GPUs.
        puts: requests for a sample: its image, and what stands beside it.
        put_s: how long a writer waits for one.
        puts_at_once: samples for whose requests it waits at the same time.
        puts_per_s: that the storage takes.
        shard: samples that are committed together.
        commits: at once.
    """

    total: int = 1_000_000
    batch: int = 256
    draw_s: float = 1.57
    jitter: float = 0.05
    start_s: float = 90.0
    gpus_per_node: int = 8
    sample_bytes: float = 1.84e6
    link_bytes_per_s: float = 3.0e9
    write_s: float = 6.5e-3
    writers_per_gpu: float = 4.0
    puts: int = 2
    put_s: float = 0.03
    puts_at_once: int = 16
    puts_per_s: float = 3500.0
    shard: int = 512
    commits: int = 4

    def __post_init__(self) -> None:
        check_numbers(self, ("jitter", "start_s", "sample_bytes", "write_s", "puts", "put_s"))


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


def simulate(plan: Campaign, costs: Overheads, gpus: int, seed: int = 0) -> Outcome:
    """Let a campaign run on so many ``gpus``: its order, and where it waits, are those of ``engine/pipeline.py``."""
    return _Run(plan, costs, gpus, seed).outcome()


class _Run:
    def __init__(self, plan: Campaign, costs: Overheads, gpus: int, seed: int) -> None:
        self.plan, self.costs, self.clock = plan, costs, Clock()
        self.gpus = [Server(self.clock, 1) for _ in range(gpus)]
        self.links = [Server(self.clock, 1) for _ in range(math.ceil(gpus / plan.gpus_per_node))]
        self.driver, self.storage = Server(self.clock, 1), Server(self.clock, 1)
        self.writers = Server(self.clock, max(1, round(plan.writers_per_gpu * gpus)))
        self.commits = Server(self.clock, plan.commits)
        self.left, self.uncommitted = math.ceil(plan.total / plan.batch), 0
        self.asking: list[int] = []  # workers that could take a batch, were there no row before the writers
        self.chance = np.random.default_rng(seed)

    def outcome(self) -> Outcome:
        plan = self.plan
        gpus, last_s = len(self.gpus), plan.total * self.costs.row_s
        for number in range(gpus):
            for _ in range(CALLS):
                self.clock.after(plan.start_s, functools.partial(self._give, number))
        seconds = self.clock.run() + last_s
        alone = plan.total / plan.batch * plan.draw_s / gpus
        busy = {
            "GPUs": sum(gpu.busy_s for gpu in self.gpus) / gpus / seconds,
            "network": max(link.share(seconds) for link in self.links),
            "writers": self.writers.share(seconds),
            "storage requests": self.storage.share(seconds),
            "driver": (self.driver.busy_s + last_s) / seconds,
            "commits": self.commits.share(seconds),
        }
        return Outcome(seconds, alone / seconds, busy)

    def _give(self, number: int) -> None:
        """Give a worker a batch, where there is one left, and no row before the writers."""
        if not self.left:
            return
        if self.writers.waiting >= self.writers.size:
            self.asking.append(number)
            return
        self.left -= 1
        seconds = self.plan.draw_s * self.chance.lognormal(-(self.plan.jitter**2) / 2, self.plan.jitter)
        self.gpus[number].do(seconds, lambda: self.driver.do(self.costs.call_s, lambda: self._drawn(number)))

    def _drawn(self, number: int) -> None:
        self._give(number)
        plan = self.plan
        link = self.links[number // plan.gpus_per_node]
        link.do(plan.batch * plan.sample_bytes / plan.link_bytes_per_s, self._write)

    def _write(self) -> None:
        plan = self.plan
        waits_s = plan.puts * plan.put_s / plan.puts_at_once
        self.writers.do(plan.batch * max(plan.write_s, waits_s), self._stored)

    def _stored(self) -> None:
        plan = self.plan
        while self.asking and self.writers.waiting < self.writers.size:
            self._give(self.asking.pop(0))
        requests = plan.batch * plan.puts / plan.puts_per_s
        self.storage.do(requests, lambda: self.driver.do(self.costs.call_s, self._kept))

    def _kept(self) -> None:
        self.uncommitted += self.plan.batch
        while self.uncommitted >= self.plan.shard:
            self.uncommitted -= self.plan.shard
            self.commits.do(self.costs.commit_s, lambda: None)
