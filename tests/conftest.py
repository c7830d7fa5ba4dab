"""What all tests share: one private Ray session, a small cohort, and the jobs run as a user runs them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def ray_session():
    """One private Ray cluster for the whole test run."""
    from voxfleet.config.resources import ResourcesConfig
    from voxfleet.engine.cluster import session

    with session(ResourcesConfig()):
        yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An MLflow database without runs: making its tables takes many seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("database") / "m.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class MlflowServer:
    """An `mlflow server` on loopback that can be killed and started again at the same address."""

    def __init__(self, folder):
        self._folder, self._process = folder, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

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
        deadline = time.monotonic() + 180
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.1)

    def _answers(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=10).status == 200
        return False

    def kill(self):
        """Ends the server and its workers, as a machine that fails does."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def mlflow_server(tmp_path, empty_database):
    """A server that is not started yet; it ends with the test."""
    (tmp_path / "server").mkdir()
    shutil.copy(empty_database, tmp_path / "server" / "m.db")
    server = MlflowServer(tmp_path / "server")
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _seeded():
    """No test depends on chance: what draws without a generator draws the same in every run."""
    import torch

    torch.manual_seed(0)
