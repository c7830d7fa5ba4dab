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
from pyarrow import fs

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
_S3_STARTS_WITHIN_S = 120


@pytest.fixture(scope="session")
def s3_port():
    """The port of the S3 server, in the environment before Ray starts: its workers get that of this moment."""
    with socket.socket() as held, pytest.MonkeyPatch.context() as patch:
        # bound, but not listening: nobody else gets the port, and a server that reuses addresses may have it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # nothing is asked of the network
        yield port


@pytest.fixture(scope="session")
def s3(s3_port, tmp_path_factory):
    """``s3://BUCKET`` on a real S3 server, a process of its own."""
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _S3_STARTS_WITHIN_S
        while not _answers(s3_port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        client = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True)
        client.create_dir("voxfleet")
        yield "s3://voxfleet"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def ray_session(s3_port):
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


@pytest.fixture
def one_thread():
    """Tensors this small lose by threads: several times on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
