"""The MLflow store on a database file: once over restarts, registered packages, what is left out."""

import contextlib
import functools
import json
import math
import shutil
import sqlite3
import subprocess

import mlflow
import pytest
import torch
from made_up import MODEL

from voxfleet import storage
from voxfleet.errors import UserError
from voxfleet.packages import read_package_config, write_package
from voxfleet.tracking.base import TrackingConfig
from voxfleet.tracking.mlflow import source_tags
from voxfleet.tracking.outbox import Record
from voxfleet.tracking.record import open_tracker, resolve_model, send_unsent


class Job:
    """A job whose record is in a database of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.config = TrackingConfig(uri=f"sqlite:///{folder}/db/m.db", flush_s=0)
        self.said = []

    def record(self, begun):
        return Record(name="dit", key="abc", unsent=f"{self.folder}/run/.voxfleet/unsent.json", begun=begun)

    def tracker(self, begun=True, **changes):
        config = TrackingConfig(**{**vars(self.config), **changes})
        return open_tracker(config, self.record(begun), self.said.append)

    @functools.cached_property
    def client(self):
        return mlflow.MlflowClient(self.config.uri)

    @property
    def run(self):
        (run,) = self.client.search_runs([self.client.get_experiment_by_name("voxfleet").experiment_id])
        return run

    def history(self, key):
        return [(m.step, m.value) for m in self.client.get_metric_history(self.run.info.run_id, key)]

    def files(self, folder=None):
        return [file.path for file in self.client.list_artifacts(self.run.info.run_id, folder)]


@pytest.fixture
def job(tmp_path, empty_database):
    """A job that has logged three steps of an earlier run."""
    (tmp_path / "db").mkdir()
    shutil.copy(empty_database, tmp_path / "db" / "m.db")
    job = Job(tmp_path)
    with job.tracker(begun=False) as tracker:
        tracker.log_params({"model": {"depth": 2}})
        for step in (10, 20, 30):
            tracker.log_metrics([{"step": step, "loss": 1.0 / step, "time": 1e9 + step}])
        tracker.log_metrics([{"step": 10, "val_loss": 0.5}])  # arrives late
    return job


def test_a_restarted_training_logs_each_step_once(job):
    with job.tracker() as tracker:
        tracker.log_params({"model": {"depth": 3}, "new": 1})
        for step in (20, 30, 40):  # back to a checkpoint
            tracker.log_metrics([{"step": step, "loss": 1.0 / step}])
        tracker.log_metrics([{"step": 10, "val_loss": 0.5}, {"step": 20, "val_loss": 0.4}])
        tracker.log_metrics([{"step": 40, "loss": 9.0}])
    assert job.history("loss") == [(step, 1.0 / step) for step in (10, 20, 30, 40)]
    assert job.history("val_loss") == [(10, 0.5), (20, 0.4)]
    times = [m.timestamp for m in job.client.get_metric_history(job.run.info.run_id, "loss")]
    assert times[:3] == [1000000010000, 1000000020000, 1000000030000]
    assert job.run.data.params == {"model.depth": "2", "new": "1"}
    assert job.run.info.status == "FINISHED"
    assert job.said == []


def test_results_are_recorded_where_they_differ(job):
    for volumes in (4, 4, 6, 4):
        with job.tracker() as tracker:
            tracker.log_metrics([{"volumes": volumes}])
    assert job.history("volumes") == [(0, 4), (1, 6), (2, 4)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_results_that_are_no_numbers_are_recorded_once(job, value):
    for result in (value, value, 2.0, value, value):
        with job.tracker() as tracker:
            tracker.log_metrics([{"distance": result}])
    steps = [step for step, _ in job.history("distance")]
    assert steps == [0, 1, 2]
    assert job.history("distance")[1] == (1, 2.0)
    assert job.said == []


def test_another_record_is_another_run(job):
    with open_tracker(job.config, Record(name="dit", key="other", unsent=job.record(True).unsent, begun=False), print):
        pass
    experiment = job.client.get_experiment_by_name("voxfleet").experiment_id
    assert len(job.client.search_runs([experiment])) == 2


def test_documents_files_references_and_datasets(job, tmp_path):
    (tmp_path / "mosaic.png").write_bytes(b"png")
    with job.tracker() as tracker:
        tracker.log_document("data/manifest.json", {"rows": 3})
        tracker.log_artifact(str(tmp_path / "mosaic.png"), "samples")
        tracker.log_reference("checkpoint.last", "s3://bucket/run/checkpoint_000010")
        for _ in range(2):
            tracker.log_dataset("latents", str(tmp_path / "latents"), "f" * 64, {"rows": 3})
    assert job.files("data") == ["data/manifest.json"]
    assert job.files("samples") == ["samples/mosaic.png"]
    assert job.run.data.tags["checkpoint.last"] == "s3://bucket/run/checkpoint_000010"
    (dataset,) = job.run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("latents", "f" * 36)
    assert json.loads(dataset.dataset.profile) == {"rows": 3}
    assert not (tmp_path / "mlruns").exists()
    assert (tmp_path / "db" / "mlartifacts").is_dir()  # beside the database, wherever the command ran


def test_what_can_never_be_recorded_is_left_out_in_one_line(job, tmp_path):
    with job.tracker() as tracker:
        tracker.log_metrics([{"step": 40, "loss": 0.1}, {"step": 40, "what?!": 0.1}])
        tracker.log_metrics([{"step": 50, "loss": 0.1}])
        tracker.log_artifact(str(tmp_path / "missing.png"))
    assert job.history("loss")[-1] == (50, 0.1)
    assert [("refuses metrics" in line, "refuses artifact" in line) for line in job.said] == [
        (True, False),
        (False, True),
    ]
    assert not storage.exists(job.record(True).unsent)


def test_a_package_is_registered_once_and_found_again(job, tmp_path):
    folders = [str(tmp_path / name) for name in ("best", "final")]
    marks = [
        write_package(folder, "model", {"w": torch.full((2,), float(n))}, MODEL) for n, folder in enumerate(folders)
    ]
    for _ in range(2):
        with job.tracker() as tracker:
            tracker.register_package(folders[0], marks[0], "best")
            tracker.register_package(folders[1], marks[1], "final")
    with job.tracker() as tracker:
        tracker.register_package(folders[1], marks[1], "best")
    versions = job.client.search_model_versions("name = 'dit'")
    assert sorted((int(v.version), v.tags["fingerprint"]) for v in versions) == [(1, marks[0]), (2, marks[1])]
    assert {v.run_id for v in versions} == {job.run.info.run_id}
    for name, mark in (("/1", marks[0]), ("/2", marks[1]), ("@best", marks[1]), ("@final", marks[1])):
        folder = resolve_model(f"models:/dit{name}", job.config, str(tmp_path / "downloads"))
        assert read_package_config(folder, "model")["fingerprint"] == mark
    assert not (tmp_path / "downloads").exists()  # they are on this machine
    assert job.said == []


def test_the_name_of_the_registered_model_can_be_given(job, tmp_path):
    mark = write_package(str(tmp_path / "p"), "model", {"w": torch.ones(1)}, MODEL)
    with job.tracker(model_name="heads") as tracker:
        tracker.register_package(str(tmp_path / "p"), mark, "final")
    assert job.client.get_model_version_by_alias("heads", "final").tags["fingerprint"] == mark


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("models:/nobody/1", "cannot get models:/nobody/1 from the MLflow store sqlite:"),
        ("models:/nobody@best", "cannot get models:/nobody@best"),
        ("models:/nobody", "give models:/NAME/VERSION or models:/NAME@ALIAS"),
    ],
)
def test_a_model_that_is_not_registered_is_one_line(job, uri, says):
    with pytest.raises(UserError, match=says) as caught:
        resolve_model(uri, job.config, "unused")
    assert "\n" not in str(caught.value)


def test_a_registered_model_needs_a_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"set tracking\.uri"):
        resolve_model("models:/dit/1", TrackingConfig(), "unused")
    assert resolve_model("demo/model", TrackingConfig(), "unused") == "demo/model"


def test_a_store_that_cannot_be_reached_stops_a_new_job_at_once(job):
    with (
        pytest.raises(UserError, match=r"http://\*\*\*@127\.0\.0\.1:9 \(.*refused\); check tracking.uri") as caught,
        job.tracker(begun=False, uri="http://me:secret@127.0.0.1:9"),
    ):
        pass
    assert "secret" not in str(caught.value)


def test_a_store_that_cannot_be_reached_delays_the_record_of_a_job_that_goes_on(job):
    with job.tracker(uri="http://me:secret@127.0.0.1:9") as tracker:
        tracker.log_metrics([{"step": 20, "loss": 0.05}, {"step": 40, "loss": 1.0 / 40}])
    assert len(job.said) == 2
    assert "the job goes on" in job.said[0]
    assert "refused" in job.said[0]
    assert "the next run of the same command sends them" in job.said[1]
    unsent = job.record(True).unsent
    assert "secret" not in "".join(job.said) + storage.read_bytes(unsent).decode()
    send_unsent(job.config, unsent, job.said.append)
    assert job.said[2:] == [f"tracking: sent what the last run had kept to {job.config.uri}"]
    assert job.history("loss") == [(step, 1.0 / step) for step in (10, 20, 30, 40)]
    assert job.run.info.status == "FINISHED"
    assert not storage.exists(unsent)
    send_unsent(job.config, unsent, job.said.append)
    assert len(job.said) == 3


def test_a_resumed_job_sends_what_the_run_before_it_kept(job):
    with contextlib.suppress(RuntimeError), job.tracker(uri="http://127.0.0.1:9") as tracker:
        tracker.log_metrics([{"step": 40, "loss": 1.0 / 40}])
        raise RuntimeError
    with job.tracker() as tracker:
        tracker.log_metrics([{"step": 40, "loss": 1.0 / 40}, {"step": 50, "loss": 1.0 / 50}])
    assert job.history("loss") == [(step, 1.0 / step) for step in (10, 20, 30, 40, 50)]
    assert job.run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("ends", "status"), [(None, "FINISHED"), (UserError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_run_says_how_the_job_ended(job, ends, status):
    with contextlib.suppress(UserError, KeyboardInterrupt), job.tracker():
        if ends:
            raise ends
    assert job.run.info.status == status


def test_the_revision_of_a_git_checkout_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert source_tags() == {}

    def git(*arguments):
        options = ["-c", "user.name=n", "-c", "user.email=n@localhost", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *options, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    revision = git("rev-parse", "HEAD")
    git("tag", "-a", "v1", "-m", "a tag is not the revision")
    assert source_tags() == {"mlflow.source.git.commit": revision}
    (tmp_path / "file").write_text("2")
    assert source_tags() == {"mlflow.source.git.commit": f"{revision}-dirty"}
    monkeypatch.setenv("PATH", "")
    assert source_tags() == {}


@pytest.mark.parametrize(
    ("changes", "says"), [({"model_name": "a/b"}, "model_name is 'a/b'"), ({"flush_s": -1}, "flush_s is -1")]
)
def test_what_the_configuration_refuses(changes, says):
    with pytest.raises(ValueError, match=says):
        TrackingConfig(**changes)


def test_a_run_that_is_deleted_while_the_job_goes_on_is_begun_again(tmp_path, empty_database):
    (tmp_path / "db").mkdir()
    shutil.copy(empty_database, tmp_path / "db" / "m.db")
    job = Job(tmp_path)
    with job.tracker(begun=False, flush_s=30) as tracker:
        tracker.log_metrics([{"step": 1, "loss": 1.0}])
        while not (found := job.client.search_runs(["1"])) or not found[0].data.metrics:
            pass  # until the record has it
        job.client.delete_run(found[0].info.run_id)
        tracker.log_metrics([{"step": 2, "loss": 0.5}])
    assert job.history("loss") == [(2, 0.5)]
    assert job.run.info.status == "FINISHED"


def test_a_part_of_another_record_is_below_it(tmp_path, empty_database):
    (tmp_path / "db").mkdir()
    shutil.copy(empty_database, tmp_path / "db" / "m.db")
    job = Job(tmp_path)
    child = Record(name="child", key="child", unsent=f"{tmp_path}/child.json", begun=False, parent="abc")
    with job.tracker(begun=False), open_tracker(job.config, child, job.said.append):
        pass
    found = {run.info.run_name: run for run in job.client.search_runs(["1"])}
    assert found["child"].data.tags["mlflow.parentRunId"] == found["dit"].info.run_id
    assert "mlflow.parentRunId" not in found["dit"].data.tags


def test_a_deleted_experiment_is_named_with_two_ways_out(job):
    experiment = job.client.get_experiment_by_name("voxfleet").experiment_id
    job.client.delete_experiment(experiment)
    line = rf"experiment voxfleet was deleted in the store; .*mlflow experiments restore --experiment-id {experiment}`"
    with (
        pytest.raises(UserError, match=rf"{line}\) or name another with tracking\.experiment$"),
        job.tracker(begun=False),
    ):
        pass
    with job.tracker(begun=False, experiment="another"):
        pass
    with job.tracker() as tracker:  # of a job that goes on: kept until the experiment is restored
        tracker.log_metrics([{"step": 40, "loss": 0.1}])
    assert "experiment voxfleet was deleted" in "".join(job.said)
    job.client.restore_experiment(experiment)
    send_unsent(job.config, job.record(True).unsent, job.said.append)
    assert job.history("loss")[-1] == (40, 0.1)


@pytest.mark.parametrize(
    "name", ["../../x", "/proc/nowhere", "..", ".", "a\\..\\b", "team/exp", "a:b", "~root", "x" * 400, "é" * 300]
)
def test_the_files_of_any_experiment_stay_beside_the_database(job, tmp_path, name):
    with job.tracker(begun=False, experiment=name) as tracker:
        tracker.log_document("note.json", {})
    (file,) = tmp_path.rglob("note.json")
    run = job.client.search_runs([job.client.get_experiment_by_name(name).experiment_id])[0]
    assert str(file) == f"{run.info.artifact_uri}/note.json"
    folder = file.relative_to(tmp_path / "db" / "mlartifacts").parts
    assert folder[1:] == (run.info.run_id, "artifacts", "note.json")
    assert job.said == []


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "x" * 501])
def test_names_that_are_none_are_refused(job, name):
    with (
        pytest.raises(UserError, match=r"tracking\.experiment is .*one line of 1 to 500") as caught,
        job.tracker(begun=False, experiment=name),
    ):
        pass
    assert "\n" not in str(caught.value)


def is_folder(path):
    path.mkdir(parents=True)


def is_text(path):
    path.parent.mkdir()
    path.write_text("not a database " * 100)


def is_below_a_file(path):
    path.parent.write_text("")


def is_newer(path):
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("update alembic_version set version_num = 'of tomorrow'")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (is_folder, "unable to open database file"),
        (is_text, "file is not a database"),
        (is_below_a_file, r"\[Errno \d+\] [\w ]+"),
        (is_newer, r"database schema \(found version of tomorrow, .*\)"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_at_the_first_try(
    tmp_path, empty_database, monkeypatch, spoil, reason
):
    from mlflow.store.db import utils

    tries, path = [], tmp_path / "db" / "m.db"
    monkeypatch.setattr(utils.time, "sleep", lambda seconds: tries.append(seconds))
    if spoil is is_newer:
        path.parent.mkdir()
        shutil.copy(empty_database, path)
    spoil(path)
    job = Job(tmp_path)
    with (
        pytest.raises(
            UserError, match=rf"cannot open the MLflow store .*m\.db \({reason}\); check tracking\.uri"
        ) as caught,
        job.tracker(begun=False),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert tries == []  # MLflow sleeps between tries


def test_a_database_that_another_process_locks_is_one_line(job, tmp_path, monkeypatch):
    connect = sqlite3.dbapi2.connect
    monkeypatch.setattr(sqlite3.dbapi2, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0}))
    other = Job(tmp_path / "other")
    (tmp_path / "other" / "db").mkdir(parents=True)
    shutil.copy(tmp_path / "db" / "m.db", tmp_path / "other" / "db" / "m.db")
    with contextlib.closing(connect(tmp_path / "other" / "db" / "m.db", isolation_level=None)) as database:
        database.execute("begin exclusive")
        with (
            pytest.raises(UserError, match=r"m\.db \(database is locked\); check tracking\.uri"),
            other.tracker(begun=False),
        ):
            pass
    with other.tracker(begun=False):  # after that it is opened
        pass
    assert other.run.info.status == "FINISHED"
