"""One harness of faults: a cluster of several nodes, storage and a record that fail, and jobs that outlive it all.

A job runs as a driver of its own, with its outputs in a bucket behind a server that answers late, with errors, or not
at all. What is killed, and when, is a list of ``Fault``.
"""

import contextlib
import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
from deadlines import extend

from voxfleet.cli import INTERRUPTED

HOLD = Path(__file__).parent / "hold_nodes.py"
_DEADLINE_S = extend(600)
_LOOK_S = 0.05
_AWAY_S = 5.0
T = TypeVar("T")


class Fault(NamedTuple):
    """``who`` is killed: a worker, a node (another joins), the driver (and started again); storage and record go away.

    An "interrupt" is what a terminal does to the driver, which is started again, too.

    It happens when the job's ``progress`` has come this far, and one of its workers is at work.
    """

    who: str
    progress: int


class Nodes:
    """A cluster, held by a process of its own: a head, which is the drivers' node, and ``others``.

    Attributes:
        address: of the cluster.
        token: the file that holds its token.
        ids: of its nodes, as they were at first.
    """

    def __init__(self, environment, head, *others):
        self._process = subprocess.Popen(
            [sys.executable, HOLD, json.dumps([head, *others])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        where = json.loads(self._answer())
        self.address, self.token, self.ids = where["address"], where["token"], where["nodes"]

    def workers(self, title):
        """The processes of workers whose title is like this."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it is just ending
                if re.search(title, " ".join(process.cmdline())):
                    found.append(process)
        return found

    def lose(self, title):
        """Kill a node that has such a worker, if there is one; another has joined when this returns. Says if it did."""
        self._process.stdin.write(title + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer in ("lost\n", "none\n")
        return answer == "lost\n"

    def _answer(self):
        ready, _, _ = select.select([self._process.stdout], [], [], _DEADLINE_S)
        assert ready, "the cluster does not answer"
        return self._process.stdout.readline()

    def close(self):
        """End the cluster."""
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=extend(30))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class Harness:
    """Runs jobs through faults.

    Attributes:
        nodes: the cluster.
        storage: the class of the handlers of the server that stands before S3; what it refuses, it refuses until a
            driver is dead.
        record: the MLflow server.
        folder: in which the drivers run.
        environment: of the drivers.
        log: what the drivers say.
    """

    nodes: Nodes
    storage: type
    record: object
    folder: Path
    environment: dict[str, str]
    log: Path
    _returns: threading.Thread | None = None

    def run(
        self,
        arguments: Sequence[str],
        faults: Sequence[Fault],
        title: str,
        progress: Callable[[], int],
        done: Callable[[], T],
    ) -> list[T]:
        """Run the job to its end, which must be a good one; every fault must have happened before.

        Workers are the processes whose title is like ``title``. Returns what was ``done`` after each death of a driver.
        """
        process, before = self._start(arguments), []
        try:
            for fault in faults:
                self._wait(process, functools.partial(self._has_failed, fault, title, progress, process))
                if fault.who in ("driver", "interrupt"):
                    self._wait(None, lambda: not self.nodes.workers(title))  # they outlive their driver by some steps
                    self.storage.refused = None
                    before.append(done())
                    process = self._start(arguments)
            assert process.wait(_DEADLINE_S) == 0, self.log.read_text()
        finally:
            self.storage.refused, self.storage.away = None, False
            process.kill()
            process.wait()
            if self._returns:
                self._returns.join()
        return before

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen:
        with self.log.open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "voxfleet.cli", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
            )

    def _wait(self, process: subprocess.Popen | None, happens: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not happens():
            assert process is None or process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(_LOOK_S)

    def _has_failed(self, fault: Fault, title: str, progress: Callable[[], int], driver: subprocess.Popen) -> bool:
        """Do what is asked, where it is time for that and somebody is at work."""
        if progress() < fault.progress or not (workers := self.nodes.workers(title)):
            return False
        if fault.who == "worker":
            return any(_killed(worker, title) for worker in workers)
        if fault.who == "node":
            return self.nodes.lose(title)
        if fault.who == "driver":
            driver.kill()
            driver.wait()
        elif fault.who == "interrupt":
            os.killpg(driver.pid, signal.SIGINT)
            assert driver.wait(_DEADLINE_S) == INTERRUPTED, self.log.read_text()
        elif fault.who == "record":
            self.record.kill()
            self._returns = threading.Thread(target=self.record.start)  # takes a while: the job does not wait for it
            self._returns.start()
        else:
            before, self.storage.away = self.storage.refused_away, True
            time.sleep(_AWAY_S)  # an outage has a length
            self._wait(driver, lambda: self.storage.refused_away > before)  # and is noticed
            self.storage.away = False
        return True


def _killed(worker: psutil.Process, title: str) -> bool:
    """Kill the worker, if it is still at work."""
    with contextlib.suppress(psutil.Error):
        if re.search(title, " ".join(worker.cmdline())):
            worker.kill()
            return True
    return False
