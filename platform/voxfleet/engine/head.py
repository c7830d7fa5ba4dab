"""The head of a cluster, watched: without it Ray ends the driver after a minute, and says nothing."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from voxfleet.engine.console import say

_WAIT_S, _MISSES = 5.0, 3  # a lost packet is no lost head


@contextlib.contextmanager
def watched(address: str, every_s: float = 5.0) -> Iterator[None]:
    """Say when the head falls silent, and when it answers again.

    Args:
        address: HOST:PORT of its control store (GCS).
        every_s: between two looks.
    """
    end = threading.Event()
    threading.Thread(target=_watch, args=(address, every_s, end), daemon=True).start()
    try:
        yield
    finally:
        end.set()


def _watch(address: str, every_s: float, end: threading.Event) -> None:
    missed = 0
    while not end.wait(every_s):
        answers = _answers(address)
        if answers and missed >= _MISSES:
            say(f"the head ({address}) answers again")
        missed = 0 if answers else missed + 1
        if missed == _MISSES and not end.is_set():
            say(
                f"the head ({address}) does not answer; where it stays away, Ray ends this process within a minute "
                "(exit code 1), and the same command on another cluster goes on from what is committed",
                level="error",
            )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=_WAIT_S):
        return True
    return False
