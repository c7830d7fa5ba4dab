"""Searches as a user runs them: what they leave, and what they refuse."""

import json
import re
import shutil

import mlflow
import pyarrow.parquet as pq
import pytest
import ray

from voxfleet import storage
from voxfleet.cli import parse


def records(folder):
    return [storage.read_json(str(path)) for path in sorted((folder / "record").iterdir())]


@pytest.fixture
def tune(workspace, tmp_path, empty_database):
    """Runs a search in the workspace; its folder is ``tmp_path/NAME/quick``."""
    shutil.copy(empty_database, tmp_path / "m.db")

    def run(name, *more):
        where = ["--output", str(tmp_path / name), "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
        return workspace.run("tune", *where, *more)

    return run


@pytest.mark.slow
def test_a_search_leaves_ranked_trials_a_configuration_a_page_and_one_record_each(tune, tmp_path, workspace, capfd):
    """One of its trials cannot be trained; asked again it has nothing to do."""
    folder = tmp_path / "out" / "quick"
    space = '{"model.window_size": {"grid": [[1,1,1], [2,3,2], [3,3,3]]}, "optim.lr": {"grid": [1.0e-3, 1.0e+30]}}'
    search = ["--search.space", space, "--search.searcher", "grid", "--search.trials", "3"]
    assert tune("out", *search) == 0
    shown = capfd.readouterr().err
    assert "4 networks to try; of the combinations 0 are impossible, 2 are the same as others" in shown
    assert "the same: model.window_size [3, 3, 3], optim.lr 0.001 as model.window_size [2, 3, 2]" in shown
    assert re.search(r"trial 1: failed: .*optim.lr 1e\+30: 00001: the loss is not finite", shown)
    found = records(folder)
    assert [trial["keys"]["optim.lr"] for trial in found] == [1e-3, 1e30, 1e-3]
    assert [len(trial["scores"]) for trial in found] == [len(t["scores"]) if t["reason"] == "" else 0 for t in found]
    assert max(trial["target"] for trial in found) == 9  # epochs of six samples
    table = {row["trial"]: row for row in pq.read_table(folder / "trials.parquet").to_pylist()}
    assert table[1]["status"].startswith("failed: ")
    best = next(trial for trial in found if trial["target"] == 9)
    assert table[best["number"]]["status"] == "finished"
    assert table[best["number"]]["curve"][-1]["samples"] == 54
    training = parse("train", ["--config", str(folder / "best.yaml")])
    assert list(training.model.window_size) == best["keys"]["model.window_size"]
    assert (training.name, training.trainer.epochs) == ("quick-best", 240)
    assert "# Hardware: that of the search: 1 worker of 1 CPU\n" in (folder / "best.yaml").read_text()
    page = (folder / "report.html").read_text()
    for heading in ("Ranking", "Learning curves", "Keys and scores", "What it costs", "The same network as another"):
        assert f"<h2>{heading}</h2>" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"http", page)

    before = runs_of(tmp_path)
    assert sorted(before) == ["quick", "quick-00000", "quick-00001", "quick-00002"]
    assert before["quick"].data.tags.get("mlflow.parentRunId") is None
    assert {before[f"quick-0000{n}"].data.tags["mlflow.parentRunId"] for n in range(3)} == {before["quick"].info.run_id}
    assert before["quick-00001"].info.status == "FAILED"
    assert tune("out", *search) == 0
    assert "is complete, nothing to do" in capfd.readouterr().err
    assert sorted(runs_of(tmp_path)) == sorted(before)


def runs_of(tmp_path):
    """The runs of the record, by name, each of which must be there once."""
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/m.db")
    found = client.search_runs([client.get_experiment_by_name("voxfleet").experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--search.space", '{"model.dpeth": {"choice": [1]}}'], ["model.dpeth is not known", "model.depth"]),
        (["--search.space", '{"model": {"choice": [1]}}'], ["model is a group of keys"]),
        (["--search.space", '{"model.depth": {"choice": ["x"]}}'], ["model.depth", "int", "x"]),
        (
            ["--search.space", '{"model.depth": {"integer": [8, 4]}}'],
            ["search.space.model.depth.integer", "empty range"],
        ),
        (["--search.space", '{"model.depth": {"uniform": [2, 8]}}'], ["model.depth.uniform", "Expected a int", "2.0"]),
        (["--search.space", '{"model.depth": {"choice": ["4"]}}'], ["model.depth is the text '4'", "write 4 without"]),
        (["--search.space", '{"trainer.epochs": {"choice": [4]}}'], ["trainer.epochs cannot be searched"]),
        (["--search.space", '{"config": {"choice": ["x"]}}'], ["search.space.config cannot be searched"]),
        (["--search.space", '{"diffusion.target": {"choice": ["x0", "v"]}}'], ["diffusion.target", "val_error"]),
        (["--search.metric", "accuracy"], ["search.metric is 'accuracy'", "val_loss"]),
        (["--search.min_samples", "60"], ["search.min_samples is 60", "max_samples (54)"]),
        (["--search.space", '{"model.num_heads": {"choice": [5, 7]}}'], ["2 combinations are impossible", "divide"]),
        (["--model.input_size", "[8,8,8]"], ["model.input_size", "(8, 10, 8)"]),
        (["--resources.cpus_per_worker", "64"], ["no room for 1 worker of 64 CPUs"]),
    ],
)
def test_what_cannot_be_searched_is_one_line(tune, fails, tmp_path, more, words):
    line = fails(tune, "out", *more)
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_what_memory_does_not_hold_is_left_out_and_a_space_of_nothing_else_ends(tune, fails, tmp_path, monkeypatch):
    monkeypatch.setattr("voxfleet.engine.candidates._node_memory", lambda resources: 50e6)
    line = fails(tune, "out", "--search.space", '{"model.hidden_size": {"choice": [1024, 2048]}}')
    assert "2 combinations are impossible, such as model.hidden_size 1024: needs about" in line
    assert "a worker has 0.05 GB" in line


def test_a_search_of_another_space_is_refused(tune, fails, tmp_path):
    home = tmp_path / "out" / "quick" / ".voxfleet"
    home.mkdir(parents=True)
    config = json.loads(
        json.dumps(vars(parse("tune", ["--name", "quick", "--output", "x", "--data", "y"])), default=vars)
    )
    (home.parent / "trials").mkdir()
    (home / "job.json").write_text(json.dumps({"job": "tune", "inputs": {}, "config": config}))
    line = fails(tune, "out")
    assert "was begun with" in line
    assert "name another folder, or remove this one" in line


@pytest.mark.matrix
def test_trials_whose_workers_take_all_cpus_all_finish(tune, tmp_path):
    cpus = str(int(ray.cluster_resources()["CPU"]))
    more = ["--search.trials", "2", "--search.scheduler", "none", "--search.max_samples", "12"]
    assert tune("out", "--resources.workers", cpus, *more) == 0
    assert [len(trial["scores"]) for trial in records(tmp_path / "out" / "quick")] == [1, 1]
