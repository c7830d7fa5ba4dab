"""The benchmark and model-summary jobs as a user runs them."""

import json

import pytest

from voxfleet.cli import main

TINY = ["--model.hidden_size", "24", "--model.depth", "1", "--model.num_heads", "2"]
CASES = '[{"input_size": [4,6,4], "patch_size": [2,2,2], "batch_size": 2, "work": ["forward", "train"]}]'


@pytest.fixture
def benchmark(tmp_path, ray_session):
    folder = tmp_path / "benchmark"

    def run(*arguments):
        always = ["benchmark", "--output", str(folder), "--cases", CASES, "--modes", "[eager]", *TINY]
        return main([*always, "--networks", "[configured, global]", "--repeats", "1", *arguments])

    run.folder = folder
    return run


@pytest.mark.slow
def test_the_benchmark_writes_a_table_figures_and_a_plot_once(benchmark, capsys):
    assert benchmark() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        [work, network] for work in ("forward", "train") for network in ("configured", "global")
    ]
    document = json.loads((benchmark.folder / "benchmark.json").read_text())
    assert [row["tokens"] for row in document["rows"]] == [12] * 4
    assert all(row["share"] > 0 for row in document["rows"])
    assert (benchmark.folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (benchmark.folder / "benchmark.txt").read_text().splitlines() == lines
    assert benchmark() == 0
    again = capsys.readouterr()
    assert "nothing to do" in again.err
    assert again.out.splitlines() == lines
    assert benchmark("--resources.cpus_per_worker", "2") == 2
    assert "2 CPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--modes", "[fast]"], ["modes is ['fast']", "eager, compiled, graphs"]),
        (["--networks", "[]"], ["networks", "configured, mixed, global, unet"]),
        (["--precision", "int4"], ["precision is 'int4'"]),
        (["--cases", "[]"], ["cases is empty"]),
        (["--cases", '[{"input_size": [0,6,4]}]'], ["cases[0].input_size is (0, 6, 4)"]),
        (["--cases", '[{"batchsize": 1}]'], ["config key cases: Option 'batchsize' is not accepted"]),
        (["--cases", '[{"batch_size": "x"}]'], ["config key cases: batch_size: Expected a int"]),
        (["--repeats", "0"], ["repeats is 0"]),
        (["--sampler.steps", "2000"], ["sampler.steps is 2000"]),
    ],
)
def test_bad_input_is_one_line(benchmark, capsys, arguments, words):
    assert benchmark(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)
    assert not benchmark.folder.exists()


def test_graphs_alone_need_a_gpu(benchmark, capsys):
    assert benchmark("--modes", "[graphs]") == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_model_summary_shows_a_named_size(capsys):
    assert main(["model-summary", "--size", "B/2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = "--model.hidden_size 768 --model.depth 12 --model.num_heads 12 --model.patch_size '[2,2,2]'"
    assert lines[0].split(maxsplit=1) == ["B/2", keys]
    assert any("112, a grid of 4 x 7 x 4" in line for line in lines)


def test_model_summary_refuses_an_unknown_size(capsys):
    assert main(["model-summary", "--size", "Z/2"]) == 2
    assert "S, B, L, XL" in capsys.readouterr().err
