"""Every job of the demo, through the harness of faults: each ends with what an undisturbed run leaves.

All outputs and what is read are in a bucket, behind a server that answers some requests by an error, some late, and
some never. The slow tests are one job of each kind (units of work, a training, a campaign), and meet each fault once
among them; the other jobs, and more faults of these, are the matrix.
"""

import hashlib
import json
import os
import re

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from s3_proxy import Proxy
from safetensors.torch import load
from servers import MlflowServer
from survival import Fault, Harness, Nodes

from voxfleet import storage
from voxfleet.data.shards import read_manifest, read_shard, tensors
from voxfleet.train.checkpoint import CheckpointStore

SAMPLES = 30
FINE = ["--subjects_per_shard", "1"]
LONG = ["--trainer.epochs", "12", "--trainer.checkpoint_every", "1", "--trainer.log_every", "1"]
TRAINER, TASK, HOST = "ray::RayTrainWorker", "ray::Map", "ray::Host"  # titles of processes
FIGURES = r"ray::(Map|_figure|_at\b|_aligned|_reconstruct|_kernel_block|_symmetric)"


@pytest.fixture(scope="module")
def bucket(s3, workspace):
    """What an undisturbed demo leaves, in a bucket."""
    root = f"{s3}/survival"
    workspace.upload(root, *(path.name for path in workspace.demo.iterdir() if path.is_dir()))
    return root


@pytest.fixture(scope="module")
def harness(bucket, workspace, s3_port, empty_database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    faults = {"error_every": 31, "slow_every": 43, "silent_every": 601, "refused_after_s": 8.0}
    with (
        Proxy.listening(s3_port, **faults) as (handler, port),
        MlflowServer.kept(folder / "server", empty_database) as record,
    ):
        record.start()
        environment = {**os.environ, storage.ROOT: bucket, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        nodes = Nodes(environment, {"num_cpus": 0}, *3 * [{"num_cpus": 1}])
        environment |= {"RAY_AUTH_TOKEN_PATH": nodes.token}
        try:
            yield Harness(nodes, handler, record, workspace.root, environment, folder / "log")
        finally:
            nodes.close()
        assert min(handler.errors, handler.late) > 0


@pytest.fixture
def survive(harness, workspace, bucket):
    """Runs a job through faults; its outputs are in a folder of the bucket, which is returned.

    What was committed before a driver was killed is not made again.
    """

    def run(job, faults, title, progress, *more):
        folder = f"{bucket}/{job}"
        where = ["--tracking.uri", harness.record.uri, "--resources.address", harness.nodes.address]
        arguments = workspace.arguments(job, *more, "--output", folder, *where)
        before = harness.run(arguments, faults, title, lambda: progress(folder), lambda: committed(folder))
        for files in before:
            assert files.items() <= committed(folder).items()
        return folder

    return run


def committed(folder):
    """When each fragment of the ledger was written."""
    ledger = f"{folder}/.voxfleet/ledger"
    system, path = storage.filesystem(ledger)
    return {name: system.get_file_info(f"{path}/{name}").mtime for name in storage.names(ledger)}


def fragments(folder):
    return len(storage.names(f"{folder}/.voxfleet/ledger"))


def steps(folder):
    """The steps of all trainings under the folder that have a checkpoint."""
    runs = [folder, *(f"{folder}/{name}" for name in storage.names(folder))]
    return sum(max(CheckpointStore(run).steps(), default=0) for run in runs)


def contents(folder, kind, column):
    """What a folder of shards holds of each subject."""
    found = {}
    for file in read_manifest(str(folder), kind).files(str(folder)):
        table = read_shard(file)
        found |= dict(zip(table["subject_id"].to_pylist(), tensors(table, column), strict=True))
    return found


@pytest.fixture(scope="module")
def fine(workspace, bucket):
    """More shards than the demo has."""
    assert workspace.run("prepare", *FINE, "--output", f"{bucket}/fine", "--tracking.uri", "null") == 0


@pytest.mark.matrix
def test_cohort(survive, workspace):
    there = survive("cohort", [Fault("worker", 2), Fault("driver", 5)], TASK, fragments)
    here = workspace.demo / "cohort"
    images = sorted(str(path.relative_to(here)) for path in here.rglob("*.nii.gz"))
    assert len(images) > 12
    for name in ["participants.tsv", *images]:
        assert storage.read_bytes(f"{there}/{name}") == (here / name).read_bytes()


@pytest.mark.parametrize(
    ("job", "kind", "column", "faults", "more"),
    [
        pytest.param("prepare", "volumes", "volume", ["worker", "interrupt"], FINE, marks=pytest.mark.slow),
        pytest.param(
            *("encode", "latents", "mu", ["node", "storage", "worker"], ["--data", "fine"]), marks=pytest.mark.matrix
        ),
    ],
)
def test_shards(survive, workspace, request, job, kind, column, faults, more):
    if job == "encode":
        request.getfixturevalue("fine")
    there = survive(job, [Fault(who, 2 + 2 * n) for n, who in enumerate(faults)], TASK, fragments, *more)
    found, clean = (contents(folder, kind, column) for folder in (there, workspace.demo / kind))
    assert found.keys() == clean.keys()
    for name, values in clean.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


@pytest.mark.parametrize(
    ("job", "held_back", "faults", "more"),
    [
        pytest.param("train-vae", 14, [Fault("worker", 4), Fault("interrupt", 10)], [], marks=pytest.mark.matrix),
        pytest.param(
            "train",
            18,
            [Fault("worker", 2), Fault("record", 4), Fault("driver", 12)],
            ["--loading.mode", "streamed"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("train", 18, [Fault("node", 2), Fault("storage", 8), Fault("driver", 12)], []), marks=pytest.mark.matrix
        ),
    ],
)
def test_trainings(survive, harness, bucket, workspace, tmp_path, job, held_back, faults, more):
    """Every bit is that of an undisturbed training, of rows that are kept; a driver goes on from a checkpoint."""
    clean = ["--output", str(tmp_path), "--package", str(tmp_path / "package"), "--tracking.uri", "null"]
    assert workspace.run(job, *LONG, *clean) == 0
    harness.storage.refused = f"step-{held_back:09d}"  # it is not over before its driver is killed
    there = survive(job, faults, TRAINER, steps, *LONG, *more, "--package", f"{bucket}/package/{job}")
    (run,) = [path.name for path in tmp_path.iterdir() if path.name != "package"]
    weights = load((tmp_path / "package" / "model.safetensors").read_bytes())
    found = load(storage.read_bytes(f"{bucket}/package/{job}/model.safetensors"))
    assert {name: value.equal(found[name]) for name, value in weights.items()} == dict.fromkeys(weights, True)
    history = storage.read_json(f"{there}/{run}/history.json")
    assert history == json.loads((tmp_path / run / "history.json").read_text())
    assert re.search(rf"{run}: going on from step [1-9]\d* of \d+\n", harness.log.read_text())
    logged = recorded(harness, run)
    for key in {key for point in history for key in point if key not in ("step", "time")}:
        assert logged(key) == [(point["step"], point[key]) for point in history if key in point], key


def recorded(harness, name):
    """A function that gives what was logged of a key, by the one run of this name; each step of it is there once."""
    client = mlflow.MlflowClient(harness.record.uri)
    runs = client.search_runs([client.get_experiment_by_name("voxfleet").experiment_id])
    (run,) = [run for run in runs if run.info.run_name == name]
    assert run.info.status == "FINISHED"
    return lambda key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


@pytest.mark.matrix
def test_tune(survive, harness, workspace, tmp_path):
    """Same trials, same scores, same best; each trial has one record, and is scored once after so many samples."""
    more = ["--search.max_concurrent", "1", "--search.trials", "2", "--search.max_samples", "18"]
    more += ["--trainer.checkpoint_every", "1"]
    assert workspace.run("tune", *more, "--output", str(tmp_path), "--tracking.uri", "null") == 0

    def trials(folder):
        return steps(f"{folder}/quick/trials")

    faults = [Fault("driver", 3), Fault("node", 5)]
    there = f"{survive('tune', faults, TRAINER, trials, *more)}/quick"
    scored = re.findall(r"^(trial \d+): val_loss \S+ (after \d+ samples)", harness.log.read_text(), re.MULTILINE)
    assert len(set(scored)) == len(scored) > 0
    here = str(tmp_path / "quick")
    found, clean = (
        [storage.read_json(f"{folder}/record/{name}") for name in storage.names(f"{folder}/record")]
        for folder in (there, here)
    )
    for trial in found + clean:
        trial.pop("seconds")
    assert found == clean
    best = [yaml.safe_load(storage.read_bytes(f"{folder}/best.yaml")) for folder in (there, here)]
    for config in best:
        del config["output"], config["resources"]
        config.pop("tracking", None)
    assert best[0] == best[1]
    for trial in clean:
        steps_seen = [step for step, _ in recorded(harness, f"quick-{trial['number']:05d}")("val_loss")]
        assert sorted(set(steps_seen)) == steps_seen != []
    assert recorded(harness, "quick")


@pytest.mark.slow
def test_generate(survive, workspace):
    """Each sample is there once, and those of an undisturbed campaign are the same."""
    more = ["--gate.latents", "null", "--campaign.samples", str(SAMPLES)]
    more += ["--save.shard_size", "2", "--save.latents", "true"]
    faults = [Fault("worker", 2), Fault("node", 5), Fault("storage", 8), Fault("driver", 11)]
    there = survive("generate", faults, HOST, fragments, *more)
    rows, clean = (
        pq.read_table(pa.BufferReader(storage.read_bytes(f"{folder}/manifest.parquet"))).to_pylist()
        for folder in (there, workspace.demo / "synthetic")
    )
    assert [row["sample_id"] for row in rows] == [f"syn-{c}-{i:07d}" for c in ("HC", "TLE") for i in range(SAMPLES)]
    digests = {row["sample_id"]: row["sha256"] for row in rows}
    assert digests == {
        row["sample_id"]: hashlib.sha256(storage.read_bytes(f"{there}/{row['file']}")).hexdigest() for row in rows
    }
    assert {row["sample_id"]: row["sha256"] for row in clean}.items() <= digests.items()
    latents = f"{there}/latents"
    files = read_manifest(latents, "latents").files(latents)
    assert {f"{latents}/{name}" for name in storage.names(latents) if name.endswith(".parquet")} == set(files)
    assert sorted(name for file in files for name in read_shard(file)["source"].to_pylist()) == list(digests)


@pytest.mark.matrix
def test_evaluate(survive, bucket, workspace):
    more = ["--page", f"{bucket}/evaluate.html"]
    there = survive("evaluate", [Fault("worker", 0), Fault("driver", 1)], FIGURES, fragments, *more)
    found = storage.read_json(f"{there}/figures.json")
    assert found == json.loads((workspace.demo / "report" / "figures.json").read_text())
