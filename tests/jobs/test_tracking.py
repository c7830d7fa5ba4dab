"""Whole jobs and their record: registered packages, and what an earlier run could not send."""

import json
import shutil

import mlflow
import pyarrow.parquet as pq
import pytest

from voxfleet import storage
from voxfleet.packages import copy_package, read_package_config
from voxfleet.tracking.base import TrackingConfig
from voxfleet.tracking.outbox import Record
from voxfleet.tracking.record import open_tracker, resolve_model


def files(folder):
    return {row["file"]: row["sha256"] for row in pq.read_table(folder / "manifest.parquet").to_pylist()}


@pytest.fixture
def registered(workspace, tmp_path, empty_database):
    """A store in which the workspace's model is registered as version 1 of "heads"."""
    shutil.copy(empty_database, tmp_path / "m.db")
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/m.db", model_name="heads")
    record = Record(name="dit", key="abc", unsent=str(tmp_path / "unsent.json"), begun=False)
    model = str(workspace.demo / "model")
    with open_tracker(config, record, print) as tracker:
        tracker.register_package(model, read_package_config(model, "model")["fingerprint"], "final")
    return config


@pytest.fixture
def from_a_server(workspace, monkeypatch):
    """Registered packages as from a server, whose files only it can read: on the driver's machine alone."""

    def downloaded(uri, config, folder):
        found = str(workspace.demo / "vae") if uri == "models:/vae/1" else resolve_model(uri, config, folder)
        return copy_package(found, folder) if uri.startswith("models:/") else found

    monkeypatch.setattr("voxfleet.engine.registered.resolve_model", downloaded)


def shared(folder):
    """The packages that were put where all workers read them."""
    return storage.names(str(folder / ".voxfleet" / "packages"))


@pytest.mark.slow
def test_generate_takes_a_registered_model(workspace, registered, from_a_server, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--model", "models:/heads@final", "--output", str(out), "--tracking.uri", registered.uri]
    before = sorted(tmp_path.iterdir())
    assert workspace.run("generate", *more, "--dry-run") == 0
    assert "6 samples to make" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before
    for _ in range(2):  # the second has nothing to do
        assert workspace.run("generate", *more) == 0
    assert files(out) == files(workspace.demo / "synthetic")
    assert shared(out) == ["model"]


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("job", "more", "made", "names"),
    [
        ("decode", [], "manifest.parquet", ["autoencoder"]),
        ("interpolate", ["--model", "models:/heads@final"], "interpolation.png", ["autoencoder", "model"]),
    ],
)
def test_other_jobs_take_registered_packages(workspace, registered, from_a_server, tmp_path, job, more, made, names):
    out = tmp_path / "out"
    more = ["--autoencoder", "models:/vae/1", *more, "--output", str(out), "--tracking.uri", registered.uri]
    assert workspace.run(job, *more) == 0
    assert (out / made).exists()
    assert sorted(shared(out)) == names


def test_a_model_that_is_not_registered_is_one_line(workspace, registered, tmp_path, capsys):
    more = ["--model", "models:/heads/7", "--output", str(tmp_path / "out"), "--tracking.uri", registered.uri]
    assert workspace.run("generate", *more) == 2
    assert "cannot get models:/heads/7 from the MLflow store" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("job", "folder"), [("train", "runs/dit"), ("generate", "synthetic"), ("encode", "latents")])
def test_a_complete_output_sends_what_its_run_could_not(workspace, job, folder):
    """The record of a training is kept in its run's folder, though its package tells that it is complete."""
    home = workspace.demo / folder / ".voxfleet"
    key = json.loads((home / "job.json").read_text())["record"]
    kept = Record(name=job, key=key, unsent=str(home / "unsent.json"), begun=True)
    kept.keep([{"kind": "tags", "tags": {"late": "yes"}}])
    assert workspace.run(job) == 0
    assert not storage.exists(kept.unsent)
    client = mlflow.MlflowClient(f"sqlite:///{workspace.demo}/mlflow.db")
    runs = client.search_runs(
        [client.get_experiment_by_name("voxfleet").experiment_id], f"tags.`voxfleet.key` = '{key}'"
    )
    assert [run.data.tags["late"] for run in runs] == ["yes"]
