"""The mailbox of a fit, in a file of its own: the actor's process starts without what the others need."""

from typing import Any

import ray


@ray.remote(num_cpus=0)
class Mailbox:
    """Carries messages from the workers to the driver, which shows and records them."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._failures: list[Exception] = []
        self._diverged: dict[str, Any] = {}

    def put(self, message: dict[str, Any]) -> None:
        """Leave a message."""
        self._messages.append(message)

    def fail(self, error: Exception) -> None:
        """Leave an error that starting again would not mend."""
        self._failures.append(error)

    def diverged(self, step: int, samples: list[str], broken: list[str]) -> None:
        """Leave the samples whose loss is not finite, and those of them whose shard holds such numbers."""
        found = self._diverged
        found["step"] = step
        found["samples"] = [*found.get("samples", []), *samples]
        found["broken"] = [*found.get("broken", []), *broken]

    def drain(self) -> list[dict[str, Any]]:
        """Take all messages."""
        messages, self._messages = self._messages, []
        return messages

    def failures(self) -> list[Exception]:
        """All errors."""
        return self._failures

    def divergence(self) -> dict[str, Any]:
        """What ``diverged`` left."""
        return self._diverged
