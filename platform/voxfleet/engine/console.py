"""What a job says: one progress line with rate and time left, then a summary line."""

import sys
import time
from collections.abc import Iterable

_REDRAW_S, _LOG_EVERY_S = 0.2, 30.0


def say(line: str) -> None:
    """One line for the user."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def show(lines: Iterable[str]) -> None:
    """What was asked for, where a pipe can take it."""
    sys.stdout.writelines(line + "\n" for line in lines)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """Seconds as ``42 s`` or ``3 min 05 s`` or ``2 h 10 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """The progress of one stage: redrawn in place on a terminal, elsewhere a line every half minute."""

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self.stage, self._total, self._unit = stage, total, unit
        self._done = self._first = 0
        self._began = self._shown = time.monotonic()
        self._first_at: float | None = None
        self._terminal = sys.stderr.isatty()

    def skip(self, units: int) -> None:
        """Count ``units`` that an earlier run finished: they are done, but not in this run's time."""
        self._done += units

    def advance(self, units: int, note: str = "") -> None:
        """Count ``units`` that are now finished, and show it where it is time."""
        now = time.monotonic()
        self._done += units
        if self._first_at is None:  # the first units carry the start of the workers: they do not count for the rate
            self._first, self._first_at = self._done, now
        if now - self._shown < (_REDRAW_S if self._terminal else _LOG_EVERY_S):
            return
        self._shown = now
        parts = [f"{self._done}/{self._total} {self._unit}"]
        if rate := self._rate(now):
            parts += [f"{rate:.3g}/s", f"{duration((self._total - self._done) / rate)} left"]
        line = f"{self.stage}: {', '.join([*parts, *filter(None, [note])])}"
        sys.stderr.write(f"\r\x1b[2K{line}" if self._terminal else line + "\n")
        sys.stderr.flush()

    def _rate(self, now: float) -> float:
        return (self._done - self._first) / max(now - self._first_at, 1e-9) if self._first_at is not None else 0.0

    def finish(self, summary: str) -> None:
        """Replace the progress line by the summary of the stage."""
        now = time.monotonic()
        clear = "\r\x1b[2K" if self._terminal else ""
        rate = self._rate(now)
        spent = duration(now - self._began) + (f", {rate:.3g} {self._unit}/s" if rate else "")
        say(f"{clear}{self.stage}: {summary} ({spent})")


class Quiet(Progress):
    """The progress of one of several things that run side by side: it has a name, and is not shown."""

    def advance(self, units: int, note: str = "") -> None:
        """Show nothing."""

    def finish(self, summary: str) -> None:
        """Show nothing."""
