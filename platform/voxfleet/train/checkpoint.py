"""Checkpoints of a run: one file each, written whole or not at all, so that the newest one that is there is good."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from voxfleet import storage

FOLDER, VALIDATION = "checkpoints", "validation.json"
_STALE_S = 3600.0
_NAME = re.compile(r"step-(\d+)\.pt")

Measures = dict[str, float]


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints in the folder of a run, and what validation measured of them."""

    run: str

    def uri(self, step: int) -> str:
        """Where the checkpoint of ``step`` stands."""
        return storage.join(self.run, FOLDER, f"step-{step:09d}.pt")

    def steps(self) -> list[int]:
        """Steps of the checkpoints, rising."""
        found = (_NAME.fullmatch(name) for name in storage.names(storage.join(self.run, FOLDER)))
        return [int(match[1]) for match in found if match]

    def write(self, step: int, data: bytes) -> None:
        """Write a checkpoint.

        Raises:
            UserError: if the storage refuses; what stood there before is untouched.
        """
        storage.write_bytes(self.uri(step), data)

    def read(self, step: int) -> bytes:
        """The checkpoint of ``step``."""
        return storage.read_bytes(self.uri(step))

    def tidy(self) -> None:
        """Remove the halves of checkpoints that were being written when a run was killed."""
        storage.remove_unfinished(storage.join(self.run, FOLDER), _STALE_S)

    def validations(self) -> dict[int, Measures]:
        """What was measured, by step; kept longer than the checkpoints."""
        uri = storage.join(self.run, VALIDATION)
        points = storage.read_json(uri) if storage.exists(uri) else []
        return {point["step"]: point for point in points}

    def write_validations(self, found: Mapping[int, Measures]) -> None:
        """Keep what was measured."""
        storage.write_json(storage.join(self.run, VALIDATION), [found[step] for step in sorted(found)])

    def prune(self, found: Mapping[int, Measures], *, newest: int, best: int, pending: Callable[[int], bool]) -> None:
        """Remove all but the ``newest``, the ``best`` by validation loss and those that are ``pending`` for one."""
        for step in to_remove(self.steps(), found, newest=newest, best=best):
            if not pending(step):
                storage.remove(self.uri(step))


def best_step(found: Mapping[int, Measures]) -> int | None:
    """The step of the smallest validation loss; of equal ones the first."""
    return min(found, key=lambda step: (found[step]["val_loss"], step), default=None)


def to_remove(steps: list[int], found: Mapping[int, Measures], *, newest: int, best: int) -> set[int]:
    """Which of ``steps`` are neither among the ``newest`` nor the ``best``."""
    ranked = sorted((step for step in steps if step in found), key=lambda step: (found[step]["val_loss"], step))
    return set(steps) - set(sorted(steps)[-newest:]) - set(ranked[:best])
