"""Servers on loopback that tests start."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from deadlines import extend


def free_ports(count):
    """As many ports that nobody listens at, of those that no system gives to whoever asks for any."""
    ports = []
    for port in random.SystemRandom().sample(range(20_000, 32_768), 1000):
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            ports.append(port)
    return ports[:count]


class MlflowServer:
    """An `mlflow server` on loopback that can be killed and started again at the same address."""

    def __init__(self, folder):
        self._folder, self._process = folder, None
        (self._port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self._port}"

    @classmethod
    @contextlib.contextmanager
    def kept(cls, folder, database):
        """A server that is not started yet, with a copy of ``database``; it ends with the block."""
        folder.mkdir()
        shutil.copy(database, folder / "m.db")
        server = cls(folder)
        try:
            yield server
        finally:
            server.kill()

    def start(self):
        """Returns when the server answers."""
        store = ["--backend-store-uri", f"sqlite:///{self._folder}/m.db", "--artifacts-destination", "files"]
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *address, *store],
                cwd=self._folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # starts in half the time
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + extend(60)
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.1)

    def _answers(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=extend(10)).status == 200
        return False

    def kill(self):
        """Ends the server and its workers, as a machine that fails does."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
