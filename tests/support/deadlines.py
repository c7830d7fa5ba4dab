"""Deadlines of tests: longer where this machine is slow, or busy with other work."""

import os
import subprocess
import sys
import time

_SLOWNESS = "VOXFLEET_TESTS_SLOWNESS"
_USUAL_START_S = 0.5  # of processes that import Ray, one a core, on the machines on which the deadlines were chosen


def extend(seconds: float) -> float:
    """A deadline that was chosen on an idle machine, in seconds, times how much slower this one is (at least 1).

    That is measured once, and kept in the environment for the scripts that tests start.
    """
    if _SLOWNESS not in os.environ:
        began = time.monotonic()
        processes = [subprocess.Popen([sys.executable, "-c", "import ray"]) for _ in os.sched_getaffinity(0)]
        assert [process.wait() for process in processes] == [0] * len(processes)
        os.environ[_SLOWNESS] = str(max(1.0, (time.monotonic() - began) / _USUAL_START_S))
    return seconds * float(os.environ[_SLOWNESS])
