"""A discrete-event simulation: a clock, and servers before which work waits in a row."""

import functools
import heapq
import itertools
from collections import deque
from collections.abc import Callable

Then = Callable[[], None]


class Clock:
    """Simulated time, and what is still to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Then]] = []
        self._order = itertools.count()

    def after(self, seconds: float, then: Then) -> None:
        """``then`` happens in so many seconds; what happens at the same time happens in the order of the calls."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), then))

    def run(self) -> float:
        """Let everything happen; returns the time of the last event."""
        while self._events:
            self.now, _, then = heapq.heappop(self._events)
            then()
        return self.now


class Server:
    """``size`` equal hands that work on one thing each; what finds none free waits its turn.

    Attributes:
        busy_s: seconds of all hands together.
        longest: the longest row.
    """

    def __init__(self, clock: Clock, size: int) -> None:
        self.size, self.busy_s, self.longest = size, 0.0, 0
        self._clock, self._free = clock, size
        self._row: deque[tuple[float, Then]] = deque()

    @property
    def waiting(self) -> int:
        """How much waits."""
        return len(self._row)

    def do(self, seconds: float, then: Then) -> None:
        """Work for so many ``seconds``, after all that came before; ``then`` happens at the end."""
        self._row.append((seconds, then))
        self._start()
        self.longest = max(self.longest, len(self._row))

    def _start(self) -> None:
        while self._free and self._row:
            seconds, then = self._row.popleft()
            self._free -= 1
            self.busy_s += seconds
            self._clock.after(seconds, functools.partial(self._end, then))

    def _end(self, then: Then) -> None:
        self._free += 1
        then()
        self._start()

    def share(self, seconds: float) -> float:
        """The share of ``seconds`` in which its hands worked."""
        return self.busy_s / (self.size * seconds) if seconds else 0.0
