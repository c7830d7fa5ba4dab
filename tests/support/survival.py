"""One harness of faults: a cluster of several nodes, storage and a record that fail, and jobs that outlive it all.

A job runs as a driver of its own, with its outputs in a bucket behind a server that answers late, with errors, or not
at all. What is killed, and when, is a list of ``Fault``.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

HOLD = Path(__file__).parent / "hold_nodes.py"
_DEADLINE_S = 240
_LOOK_S = 0.05
_AWAY_S = 5.0


class Fault(NamedTuple):
    """``who`` is killed: a worker, a node (another joins), the driver (and started again); storage and record go away.

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
        where = json.loads(self._process.stdout.readline())
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
        """Kill a node that has such a worker; another has joined when this returns."""
        self._process.stdin.write(title + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "lost\n"

    def close(self):
        """End the cluster."""
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class Harness:
    """Runs jobs through faults.

    Attributes:
        nodes: the cluster.
        storage: the class of the handlers of the server that stands before S3.
        record: the MLflow server.
        folder: in which the drivers run.
        environment: of the drivers.
        log: what the drivers say.
        happened: the faults that there were, of all jobs.
    """

    nodes: Nodes
    storage: type
    record: object
    folder: Path
    environment: dict[str, str]
    log: Path
    happened: list[str] = field(default_factory=list)
    _returns: threading.Thread | None = None

    def run(self, arguments: Sequence[str], faults: Sequence[Fault], progress: Callable[[], int], title: str) -> None:
        """Run the job to its end, which must be a good one; every fault must have happened before.

        Workers are the processes whose title is like ``title``.
        """
        process, chance = self._start(arguments), random.Random(0)
        try:
            for fault in faults:
                self._wait(process, lambda fault=fault: progress() >= fault.progress and self.nodes.workers(title))
                if fault.who == "driver":
                    process.kill()
                    process.wait()
                    process = self._start(arguments)
                else:
                    self._fail(fault.who, title, chance)
                self.happened.append(fault.who)
            assert process.wait(timeout=_DEADLINE_S) == 0, self.log.read_text()
        finally:
            process.kill()
            process.wait()
            if self._returns:
                self._returns.join()

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen:
        with self.log.open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "voxfleet.cli", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _wait(self, process: subprocess.Popen, happens: Callable[[], object]) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not happens():
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(_LOOK_S)

    def _fail(self, who: str, title: str, chance: random.Random) -> None:
        if who == "worker":
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(self.nodes.workers(title)).kill()
        elif who == "node":
            self.nodes.lose(title)
        elif who == "record":
            self.record.kill()
            self._returns = threading.Thread(target=self.record.start)  # takes a while: the job does not wait for it
            self._returns.start()
        else:
            self.storage.away = True
            time.sleep(_AWAY_S)  # an outage has a length
            self.storage.away = False
