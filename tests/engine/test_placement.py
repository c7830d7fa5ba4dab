"""What goes where on a cluster whose nodes are not alike: a head without CPUs, one with GPUs, and one without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deadlines import extend
from survival import Nodes

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def found():
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    nodes = Nodes(environment, {"num_cpus": 0}, {"num_cpus": 4, "num_gpus": 2}, {"num_cpus": 8})
    try:
        done = subprocess.run(
            [sys.executable, Path(__file__).parent / "place.py", nodes.address],
            env={**os.environ, "RAY_AUTH_TOKEN_PATH": nodes.token},
            capture_output=True,
            text=True,
            timeout=extend(200),
            check=False,
        )
    finally:
        nodes.close()
    assert done.returncode == 0, done.stderr
    kinds = dict(zip(nodes.ids, ("head", "gpu", "cpu"), strict=True))
    return json.loads(done.stdout, object_hook=lambda all: {k: named(v, kinds) for k, v in all.items()})


def named(value, kinds):
    return [named(part, kinds) for part in value] if isinstance(value, list) else kinds[value]


def test_workers_without_cpus_of_their_own_are_where_the_cpus_are(found):
    makers, writers = found["hosts"]
    assert makers == ["gpu", "gpu"]
    assert sorted(writers) == 4 * ["cpu"] + 2 * ["gpu"]


def test_a_batch_stays_on_its_node_where_a_worker_of_it_is_free(found):
    assert found["parcels"] == 20 * [["gpu", "gpu"]]


def test_a_stream_is_read_on_the_node_of_its_worker(found):
    assert found["read"] == 6 * ["gpu"]
