"""A chain of pools of actors through which batches flow, each stage at work while the others are.

What a stage makes goes from its worker to that of the next through the object store, past the driver: to one on the
same node, where several are as free. All actors of a pool are started at once. None is waited for that cannot be had: a
pool works with those that are up, and a batch whose worker dies is done again by another, from where it was. A stage
rests while what it made waits: memory stays flat.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from voxfleet.engine import metrics
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.console import say
from voxfleet.engine.host import Host
from voxfleet.errors import WorkMissingError

_CALLS = 2  # of an actor, so that it need not wait for the driver
_LOSSES = 5  # of a batch, which then is at fault itself
_LOOK_S = 1.0
_SHOW_S = 5.0  # between two values of a gauge


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pool.

    Attributes:
        name: for the user.
        kind: a class whose instances, made from ``arguments`` when first needed, take a batch and ``takes``, and
            return ``gives``; those of the last stage return a result for the driver.
        takes, gives: names of data.
        workers: actors.
        cpus, gpus: of each actor.
    """

    name: str
    kind: type
    arguments: tuple[Any, ...]
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass
class Spent:
    """What the calls of a stage took so far: seconds, and those of its processors.

    The first call of each worker, which may compile, is in these sums, but not in ``steady_s`` and ``steady``.
    """

    calls: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    steady: int = 0
    steady_s: float = 0.0

    @property
    def each_s(self) -> float:
        """Seconds of a call."""
        return self.steady_s / self.steady if self.steady else self.wall_s / max(self.calls, 1)

    def add(self, wall_s: float, cpu_s: float, is_first: bool) -> None:
        """Count a call."""
        self.calls, self.wall_s, self.cpu_s = self.calls + 1, self.wall_s + wall_s, self.cpu_s + cpu_s
        if not is_first:
            self.steady, self.steady_s = self.steady + 1, self.steady_s + wall_s


@dataclass
class Parcel:
    """A batch on its way; its data lie on ``node``."""

    batch: Any
    data: dict[str, Any] = field(default_factory=dict)
    node: str = ""
    stage: int = 0
    losses: int = 0
    result: Any = None


@dataclass(eq=False)
class _Actor:
    """An actor, the calls that it has not answered, whether it is up, and where."""

    handle: Any
    calls: int = 0
    up: bool = False
    node: str = ""


class _Pool:
    """The actors of a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.actors: list[_Actor] = []
        self.expected: dict[ray.ObjectRef, _Actor] = {}  # there when the actor is up
        self._up_at = time.monotonic()
        self.grow(stage.workers)

    def grow(self, workers: int) -> None:
        """Have this many actors."""
        while len(self.actors) < workers:
            node = "" if self.stage.cpus else self._roomiest()
            host = Host.options(num_cpus=self.stage.cpus, num_gpus=self.stage.gpus, **_on(node))  # type: ignore[attr-defined]
            self.actors.append(_Actor(host.remote(self.stage.kind, self.stage.arguments), node=node))
            self._expect(self.actors[-1])

    def _roomiest(self) -> str:
        """The node with the most CPUs for each of the actors on it and one more."""
        taken = collections.Counter(actor.node for actor in self.actors)
        cpus = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]}
        return max(cpus, key=lambda node: cpus[node] / (1 + taken[node]))

    def lost(self, actor: _Actor) -> None:
        """A call of this actor was lost: it gets no other before it is up again.

        Nor do those on its node that have nothing to do: where the node is lost, no call would have told.
        """
        actor.calls -= 1
        if actor.up:
            for other in self.actors:
                if other is actor or (other.up and other.node == actor.node and not other.calls):
                    self._expect(other)

    def _expect(self, actor: _Actor) -> None:
        actor.up = False
        self.expected[actor.handle.up.remote()] = actor

    def arrived(self, ref: ray.ObjectRef) -> None:
        """An actor is up, or will never be."""
        actor = self.expected.pop(ref)
        try:
            actor.node = ray.get(ref)
            actor.up = True
        except RayActorError:
            self.actors.remove(actor)
            if not self.stage.cpus:
                self.grow(len(self.actors) + 1)

    def free(self, node: str) -> _Actor | None:
        """The actor with the fewest calls, if it takes one more: on this node, where there is one of those."""
        up = (actor for actor in self.actors if actor.up)
        actor = min(up, key=lambda actor: (actor.calls, actor.node != node), default=None)
        return actor if actor and actor.calls < _CALLS else None

    @property
    def busy(self) -> float:
        """The share of the actors that have something to do."""
        return sum(actor.calls > 0 for actor in self.actors) / max(len(self.actors), 1)

    def check(self, wait_s: float) -> None:
        """Make sure that some actor is up, or was a moment ago.

        Raises:
            WorkMissingError: if none has been for ``wait_s``.
        """
        if any(actor.up for actor in self.actors):
            self._up_at = time.monotonic()
        elif not self.actors or time.monotonic() - self._up_at > wait_s:
            raise WorkMissingError(
                f"no worker of stage {self.stage.name} has come up for {wait_s:g} s; see that the cluster has room for "
                f"{self.stage.cpus:g} CPU and {self.stage.gpus:g} GPU, then run the same command again"
            )


def _on(node: str) -> dict[str, Any]:
    """Where an actor goes, as options: anywhere, or onto ``node``, from where it does not return when that is lost.

    Ray would put actors that take no CPUs, and start them again, on a head that is to have no work, too; and those that
    take nothing at all anywhere, whatever is said: so they take a byte.
    """
    if not node:
        return {"scheduling_strategy": "SPREAD"}
    there = NodeAffinitySchedulingStrategy(node, soft=True)
    return {"scheduling_strategy": there, "memory": 1, "max_restarts": 0}


class _Usage:
    """Shows, every few seconds, how many batches wait for a stage, and how busy its workers were since."""

    def __init__(self) -> None:
        self._shown_at = self._looked_at = time.monotonic()
        self._busy_s = 0.0  # of a worker on average, since the last value

    def look(self, waiting: int, pool: _Pool) -> None:
        """Count who is at work now for the time since the last look."""
        now = time.monotonic()
        self._busy_s += (now - self._looked_at) * pool.busy
        self._looked_at = now
        if (passed := now - self._shown_at) >= _SHOW_S:
            metrics.show(pool.stage.name, queue_length=waiting, busy_share=self._busy_s / max(passed, 1e-9))
            self._shown_at, self._busy_s = now, 0.0


class Pipeline:
    """The stages, their workers started.

    Args:
        stages: in their order.
        keep: data that the finished parcels hold, which is here by then.
        wait_s: how long a stage may be without a worker.
    """

    def __init__(self, stages: Sequence[Stage], *, keep: tuple[str, ...] = (), wait_s: float = 60.0) -> None:
        self.spent = {stage.name: Spent() for stage in stages}
        self._keep, self._wait_s = keep, wait_s
        # the last stage first: where there is room for a part of all workers, none of the stages is without
        self._pools = [_Pool(stage) for stage in reversed(stages)][::-1]
        self._waiting: list[collections.deque[Parcel]] = [collections.deque() for _ in stages]
        self._usage = [_Usage() for _ in stages]
        self._running: dict[ray.ObjectRef, tuple[Parcel, _Actor, tuple[ray.ObjectRef, ...]]] = {}

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            metrics.show(pool.stage.name, queue_length=0, busy_share=0)
            for actor in pool.actors:
                with contextlib.suppress(RayActorError):
                    ray.kill(actor.handle)

    def grow(self, name: str, workers: int) -> None:
        """Have this many workers in the stage ``name``."""
        next(pool for pool in self._pools if pool.stage.name == name).grow(workers)

    def run(self, source: Callable[[], Any | None]) -> Iterator[Parcel]:
        """The finished parcels of the batches that ``source`` gives, as they come.

        ``source`` is asked whenever there is room for a batch; None means none for now, and the end where nothing is on
        its way.

        Raises:
            WorkMissingError: if a batch loses its worker again and again, or a stage has none.
            VoxfleetError: what a worker raised.
        """
        while True:
            self._start(source)
            if not self._running and not any(self._waiting):
                return
            expected = {ref: pool for pool in self._pools for ref in pool.expected}
            for ref in _ready([*self._running, *expected]):
                if ref in expected:
                    expected[ref].arrived(ref)
                elif (parcel := self._returned(ref)) is not None:
                    yield parcel
            for number, pool in enumerate(self._pools):
                pool.check(self._wait_s)
                self._usage[number].look(len(self._waiting[number]), pool)

    def _start(self, source: Callable[[], Any | None]) -> None:
        """Give work to whoever is free, the last stage first."""
        for number, pool in reversed(list(enumerate(self._pools))):
            waiting = self._waiting[number]
            while True:
                if number == 0 and not waiting and (batch := source()) is not None:
                    waiting.append(Parcel(batch))
                actor = pool.free(waiting[0].node) if waiting and self._has_room(number) else None
                if actor is None:
                    break
                self._submit(waiting.popleft(), actor)

    def _has_room(self, number: int) -> bool:
        """Whether what a stage makes would not wait behind a row of others."""
        after = number + 1
        return after == len(self._pools) or len(self._waiting[after]) < max(len(self._pools[after].actors), 1)

    def _submit(self, parcel: Parcel, actor: _Actor) -> None:
        stage = self._pools[parcel.stage].stage
        call = actor.handle.work.options(num_returns=1 + len(stage.gives))
        refs = call.remote(parcel.batch, stage.gives, *(parcel.data[name] for name in stage.takes))
        first, *given = refs if stage.gives else [refs]
        actor.calls += 1
        self._running[first] = parcel, actor, tuple(given)

    def _returned(self, ref: ray.ObjectRef) -> Parcel | None:
        """The parcel of a call that ended, if it was the last one; else it goes on."""
        parcel, actor, given = self._running.pop(ref)
        pool = self._pools[parcel.stage]
        try:
            with ray_errors():
                (wall_s, cpu_s, is_first), *result = ray.get(ref) if not given else (ray.get(ref),)
        except (RayActorError, ObjectLostError, OutOfMemoryError) as error:
            pool.lost(actor)
            self._again(parcel, error)
            return None
        actor.calls -= 1
        self.spent[pool.stage.name].add(wall_s, cpu_s, is_first)
        parcel.node = actor.node
        parcel.data.update(zip(pool.stage.gives, given, strict=True))
        parcel.stage += 1
        later = {name for pool in self._pools[parcel.stage :] for name in pool.stage.takes} | set(self._keep)
        parcel.data = {name: value for name, value in parcel.data.items() if name in later}
        if parcel.stage < len(self._pools):
            self._waiting[parcel.stage].append(parcel)
            return None
        try:
            parcel.data = {name: ray.get(value) for name, value in parcel.data.items()}
        except ObjectLostError as error:
            parcel.stage -= 1
            self._again(parcel, error)
            return None
        parcel.result = result[0]
        return parcel

    def _again(self, parcel: Parcel, error: Exception) -> None:
        """Have a parcel done again: the call that lost its worker, or all where what was made is lost."""
        parcel.losses += 1
        if parcel.losses == _LOSSES:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WorkMissingError(
                f"{_LOSSES} workers died at one batch ({reason}); if it is memory, lower batch_size or "
                "resources.workers, then run the same command again"
            )
        say(f"{self._pools[parcel.stage].stage.name}: a worker was lost; its batch is made again", level="warning")
        if isinstance(error, ObjectLostError):
            parcel.data, parcel.stage, parcel.node = {}, 0, ""
        self._waiting[parcel.stage].appendleft(parcel)


def _ready(refs: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Those that are there, after a moment at most; their content stays where it is."""
    first, rest = ray.wait(refs, timeout=_LOOK_S, fetch_local=False)
    return first + ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if first and rest else first
