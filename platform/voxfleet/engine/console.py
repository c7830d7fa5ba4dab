"""What a job says: one progress line with rate and time left, then a summary line.

Where VOXFLEET_LOG is json, each line is a JSON object for those who collect logs: time, level, job, stage, message, and
for progress done, total, unit and rate.
"""

import datetime
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from voxfleet.errors import UserError

LOG = "VOXFLEET_LOG"
_REDRAW_S, _LOG_EVERY_S = 0.2, 30.0
_RATE_AFTER_S, _RATE_AFTER_STARTS = 1.0, 0.1  # a rate of a moment says nothing: seconds, and parts of the start's time
_STAGE = re.compile(r"([\w.-]+): (.*)", re.DOTALL)
_job = ""


class _Said(logging.Handler):
    """What the parts below the engine log, such as storage that is asked again, is said as all else."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), level=record.levelname.lower())


_said = _Said(logging.WARNING)


def begin(job: str) -> None:
    """From now on this process is of ``job``.

    Raises:
        UserError: if VOXFLEET_LOG is neither text nor json.
    """
    global _job
    _job = job
    logging.getLogger("voxfleet").addHandler(_said)  # once, however often
    if (asked := os.environ.get(LOG, "")) not in ("", "text", "json"):
        raise UserError(f"{LOG} is {asked!r}; it must be text or json")


def job() -> str:
    """The job that this process is of."""
    return _job


def is_structured() -> bool:
    """Whether lines are JSON objects."""
    return os.environ.get(LOG) == "json"


def say(line: str, level: str = "info", **more: Any) -> None:
    """One line for the user; a stage stands before its first colon."""
    if is_structured():
        staged = _STAGE.fullmatch(line)
        stage, message = staged.groups() if staged else ("", line)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        fields = {"time": now, "level": level, "job": _job, "stage": stage, "message": message}
        line = json.dumps({**fields, **more})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _metrics() -> Any:
    from voxfleet.engine import metrics  # here, as they bring Ray, which those who only say something do without

    return metrics


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


def _plain(rate: float) -> str:
    """Three digits of a rate, without an exponent."""
    return f"{Decimal(f'{rate:.3g}'):f}"


class Progress:
    """The progress of one stage: redrawn in place on a terminal, elsewhere a line every half minute."""

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self.stage, self._total, self._unit = stage, total, unit
        self._done = self._advanced = self._first = 0  # units: all, this run's, this run's first
        self._began = self._shown = time.monotonic()
        self._first_at: float | None = None
        self._terminal = sys.stderr.isatty() and not is_structured()

    def skip(self, units: int) -> None:
        """Count ``units`` that an earlier run finished: they are done, but not in this run's time."""
        self._done += units

    def advance(self, units: int, note: str = "") -> None:
        """Count ``units`` that are now finished, and show it where it is time."""
        now = time.monotonic()
        self._done += units
        self._advanced += units
        _metrics().count(self.stage, units)
        _metrics().show(self.stage, units_left=self._total - self._done)
        if self._first_at is None:  # the first units carry the start of the workers: they do not count for the rate
            self._first, self._first_at = self._advanced, now
        if now - self._shown < (_REDRAW_S if self._terminal else _LOG_EVERY_S):
            return
        self._shown = now
        parts, rate = [f"{self._done}/{self._total} {self._unit}"], self._rate(now)
        if rate:
            parts += [f"{_plain(rate)}/s", f"{duration((self._total - self._done) / rate)} left"]
        line = f"{self.stage}: {', '.join([*parts, *filter(None, [note])])}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()
        else:
            say(line, done=self._done, total=self._total, unit=self._unit, rate=rate)

    def _rate(self, now: float) -> float:
        """Units a second after the first ones; 0 while it is too early to tell."""
        if self._first_at is None:
            return 0.0
        enough = max(_RATE_AFTER_S, _RATE_AFTER_STARTS * (self._first_at - self._began))
        seconds = now - self._first_at
        return (self._advanced - self._first) / seconds if seconds >= enough else 0.0

    def finish(self, summary: str) -> None:
        """Replace the progress line by the summary of the stage."""
        now = time.monotonic()
        clear = "\r\x1b[2K" if self._terminal else ""
        seconds = now - self._began
        rate = self._advanced / seconds if round(seconds) else 0.0  # of all that took the time beside it
        more = f", {_plain(rate)} {self._unit}/s" if rate else ""
        say(f"{clear}{self.stage}: {summary} ({duration(seconds)}{more})")


class Quiet(Progress):
    """The progress of one of several things that run side by side: it has a name, and is not shown."""

    def advance(self, units: int, note: str = "") -> None:
        """Show nothing."""

    def finish(self, summary: str) -> None:
        """Show nothing."""
