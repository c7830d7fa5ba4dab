"""The check of a search space: what is impossible, what is the same network twice, and what memory does not hold."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from voxfleet import storage
from voxfleet.config.jobs import TrainConfig, TuneConfig
from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.shards import Manifest
from voxfleet.engine.cluster import gpus_per_worker
from voxfleet.engine.console import say
from voxfleet.engine.output import as_document, digest
from voxfleet.engine.train import check_model
from voxfleet.errors import UserError
from voxfleet.search.searchers import random
from voxfleet.search.space import MOST_LISTED, Keys, combinations, size, words
from voxfleet.search.study import TRIES
from voxfleet.train.memory import Need, measured_bytes

Found = dict[str, Any]  # lists of combinations: kept, removed (and why), merged (with which)

_SHOWN = 12  # lines of each kind
_TRIED = 32  # combinations of which one is measured, and that are drawn at least before a space is given up
_ENOUGH = 128e6  # bytes of activations, beside which what torch takes for itself hardly shows
_FILLED = 0.9  # of the memory
_LOOK_S = 5  # for one combination that can be trained


@dataclass(frozen=True)
class Memory:
    """What a worker has, in bytes, and how much a real step took of what was counted for it."""

    limit: float
    factor: float

    def check(self, need: Need) -> None:
        """Make sure that there is enough.

        Raises:
            ValueError: if there is not.
        """
        if (wanted := need.bytes() * self.factor) > _FILLED * self.limit:
            raise ValueError(f"needs about {wanted / 1e9:.3g} GB of memory, a worker has {self.limit / 1e9:.3g} GB")


@dataclass
class Candidates:
    """The combinations of a search, as they are looked at.

    Attributes:
        config: of the search.
        manifest: of the latents.
        memory: what a worker has, once it is known.
    """

    config: TuneConfig
    manifest: Manifest
    memory: Memory | None = None

    def training(self, keys: Keys) -> TrainConfig:
        """What is trained with ``keys``.

        Raises:
            ValueError: if it cannot be.
        """
        training = self.config.trial(keys)
        check_model(training, self.manifest)
        if training.trainer.batch_size < self.config.resources.workers:
            raise ValueError(f"trainer.batch_size is {training.trainer.batch_size}, fewer than workers")
        if self.memory:
            self.memory.check(self.need(training))
        return training

    def need(self, training: TrainConfig) -> Need:
        """What a worker holds."""
        part = training.trainer.part_size(self.config.resources.workers)
        return Need(training.model, -(-part // training.trainer.accumulate), training.gradient_checkpointing)

    def network(self, keys: Keys) -> str:
        """Equal for combinations that train the same.

        Raises:
            ValueError: as ``training``.
        """
        training = self.training(keys)
        return digest({**as_document(training), "model": str(training.model.network)})

    def listed(self) -> Found:
        """All combinations, where they can be listed: those that are left, are removed (why), and are merged (with).

        Raises:
            UserError: if nothing can be trained.
        """
        found: Found = {"kept": [], "removed": [], "merged": []}
        if size(self.config.search.domains) > MOST_LISTED:
            self._any()
            return found
        networks: dict[str, Keys] = {}
        for keys in combinations(self.config.search.domains):
            try:
                name = self.network(keys)
            except ValueError as error:
                found["removed"].append({"keys": keys, "why": str(error)})
                continue
            if name in networks:
                found["merged"].append({"keys": keys, "same": networks[name]})
            else:
                networks[name] = keys
                found["kept"].append(keys)
        if not found["kept"]:
            raise _nothing(len(found["removed"]), **found["removed"][0])
        return found

    def _any(self) -> TrainConfig:
        """One combination of a space that cannot be listed, if one is drawn in time."""
        began = time.monotonic()
        for number in range(TRIES):
            keys = random(self.config.search.domains, self.config.search.seed, number, [])
            try:
                return self.training(keys)
            except ValueError as error:
                why = str(error)
            if (
                number + 1 >= _TRIED and time.monotonic() > began + _LOOK_S
            ):  # counting the memory of a large network takes a while
                break
        raise _nothing(number + 1, keys, why)

    def measure(self, folder: str) -> None:
        """Take the memory from the file of an earlier run, or measure it in a step of one combination."""
        uri, resources = storage.join(folder, "memory.json"), self.config.resources
        of = {"cpus": resources.cpus_per_worker, "gpus": gpus_per_worker(resources)}
        found = storage.read_json(uri) if storage.exists(uri) else {}
        if found.get("of") != of:  # resources may change between runs
            found = {"of": of, **self._measured(of["gpus"])}
            storage.write_json(uri, found)
        self.memory = Memory(found["limit"], found["factor"])

    def _measured(self, gpus: float) -> dict[str, float]:
        resources = self.config.resources
        some = [self.training(keys) for keys in self.listed()["kept"][:_TRIED]] or [self._any()]
        needs = sorted({self.need(training) for training in some}, key=Need.bytes)
        task = _measure.options(num_cpus=resources.cpus_per_worker, num_gpus=gpus)
        memory = None if gpus else _node_memory(resources)
        limit, factor = ray.get(task.remote(needs, self.config.trainer.precision, gpus, memory))
        return {"limit": limit, "factor": factor}


def _nothing(number: int, keys: Keys, why: str) -> UserError:
    return UserError(
        f"nothing in search.space can be trained: {number} combinations are impossible, such as {words(keys)}: {why}"
    )


@ray.remote(max_calls=1)
def _measure(needs: list[Need], precision: str, gpus: float, memory: float | None) -> tuple[float, float]:
    """Memory of a worker, which on a GPU is its share of that, and what a real step took over what was counted.

    The step is of a network in the middle of those that surely fit, and of as many samples as tell; where none fits,
    what is counted has to do.
    """
    device = torch.device("cuda" if gpus else "cpu")
    limit = memory or min(gpus, 1.0) * torch.cuda.get_device_properties(device).total_memory
    fitting = [need for need in map(_telling, needs) if need.bytes() < limit / 2]
    if not fitting:
        return limit, 1.0
    need = fitting[len(fitting) // 2]
    try:
        return limit, measured_bytes(need, precision, device) / need.bytes()
    except torch.OutOfMemoryError:  # somebody else is on the GPU
        return limit, 1.0


def _telling(need: Need) -> Need:
    """The same network with so many samples that they decide."""
    one, two = (dataclasses.replace(need, part=part).bytes() for part in (1, 2))
    return dataclasses.replace(need, part=max(1, int(_ENOUGH / (two - one))))


def _node_memory(resources: ResourcesConfig) -> float:
    """Memory of a worker on a CPU: its share of the smallest node that holds one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [
        node["memory"] * resources.cpus_per_worker / node["CPU"]
        for node in nodes
        if node.get("CPU", 0) >= resources.cpus_per_worker
    ]
    return min(shares)


def say_listed(found: Found) -> None:
    """Show what the check left."""
    removed, merged = found["removed"], found["merged"]
    if found["kept"]:
        say(
            f"tune: {len(found['kept'])} networks to try; of the combinations {len(removed)} are impossible, "
            f"{len(merged)} are the same as others"
        )
    lines = [f"tune: impossible: {words(entry['keys'])}: {entry['why']}" for entry in removed[:_SHOWN]]
    lines += [f"tune: the same: {words(entry['keys'])} as {words(entry['same'])}" for entry in merged[:_SHOWN]]
    for line in lines:
        say(line)
    if len(removed) + len(merged) > len(lines):
        say(f"tune: and {len(removed) + len(merged) - len(lines)} more, in space.json")
