"""The scale job: what it measures and simulates, and what it refuses."""

import json

from voxfleet.cli import main


def test_overheads_are_measured_and_many_gpus_simulated(ray_session, tmp_path, capsys):
    tiny = [
        "--calls",
        "40",
        "--commits",
        "3",
        "--gpus",
        "[1,4]",
        "--campaign.total",
        "20000",
        "--training.steps",
        "500",
    ]
    assert main(["scale", "--output", str(tmp_path / "out"), *tiny]) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "out" / "scale.txt").read_text()
    figures = json.loads((tmp_path / "out" / "scale.json").read_text())
    assert all(value > 0 for value in figures["overheads"].values())
    for what in ("campaign", "training"):
        assert [row["gpus"] for row in figures[what]] == [1, 4]
        assert all(0 < row["efficiency"] <= 1.01 and row["bottleneck"] in table for row in figures[what])
    assert list((tmp_path / "out" / "measured").rglob("*.parquet")) == []  # what was measured with is gone
    assert list((tmp_path / "out" / "measured").rglob("*.pt")) == []
    assert main(["scale", "--output", str(tmp_path / "out"), *tiny]) == 0
    again = capsys.readouterr()
    assert again.out == table
    assert "is complete, nothing to do" in again.err
    assert main(["scale", "--output", str(tmp_path / "out"), *tiny, "--campaign.total", "5000"]) == 2
    assert "was begun with campaign.total = 20000" in capsys.readouterr().err


def test_sizes_that_are_none_are_refused(fails, tmp_path):
    assert "gpus is [0]; it must be" in fails(main, ["scale", "--output", str(tmp_path / "out"), "--gpus", "[0]"])
    assert "calls is 0; it must be" in fails(main, ["scale", "--output", str(tmp_path / "out"), "--calls", "0"])
    line = fails(main, ["scale", "--output", str(tmp_path / "out"), "--campaign.batch", "0"])
    assert "campaign.batch is 0; it must be more than 0" in line
    assert not (tmp_path / "out").exists()
