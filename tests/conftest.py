"""What all tests share: one private Ray session, a small cohort, and the jobs run as a user runs them."""

import os
import socket
import subprocess
import sys
import time

import pytest
from deadlines import extend
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from pyarrow import fs
from servers import MlflowServer

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")
if "VOXFLEET_FUZZ_MINUTES" not in os.environ:
    # some values would be those that stand in the project's code: another change, other cases
    providers._get_local_constants = providers.Constants
_STARTS_WITHIN_S = 60


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
        deadline = time.monotonic() + extend(_STARTS_WITHIN_S)
        while not _answers(s3_port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        client = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True)
        client.create_dir("voxfleet")
        yield "s3://voxfleet"
    finally:
        process.terminate()
        process.wait(timeout=extend(30))


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


@pytest.fixture
def mlflow_server(tmp_path, empty_database):
    """A server that is not started yet; it ends with the test."""
    with MlflowServer.kept(tmp_path / "server", empty_database) as server:
        yield server


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
