"""The progress line: its rate and time left count this run's work alone."""

import datetime
import json
import logging

import pytest

from voxfleet.cli import main
from voxfleet.engine import console
from voxfleet.engine.console import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left_leave_out_earlier_runs_and_the_start(clock, capsys):
    progress = Progress("encode", 100, "volumes")
    progress.skip(40)
    clock[0] += 50  # the workers start
    progress.advance(10)
    clock[0] += 40
    progress.advance(20, "fine")
    assert capsys.readouterr().err.splitlines() == [
        "encode: 50/100 volumes",
        "encode: 70/100 volumes, 0.5/s, 1 min 00 s left, fine",
    ]


def test_lines_are_rare_where_there_is_no_terminal(clock, capsys):
    progress = Progress("encode", 1000, "volumes")
    for _ in range(100):
        clock[0] += 1
        progress.advance(1)
    progress.finish("done")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4  # at 30, 60 and 90 seconds, and the summary
    assert lines[-1] == "encode: done (1 min 40 s, 1 volumes/s)"


def test_lines_for_those_who_collect_logs(clock, capsys, monkeypatch):
    monkeypatch.setenv(console.LOG, "json")
    console.begin("encode")
    progress = Progress("shards", 100, "volumes")
    clock[0] += 50
    progress.advance(10, "fine")
    console.say("it went well")
    logging.getLogger("voxfleet.storage").warning("%s: busy; trying again in %g s", "s3://bucket/a", 0.5)
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert first | {"time": ""} == {
        **{"time": "", "level": "info", "job": "encode", "stage": "shards", "message": "10/100 volumes, fine"},
        **{"done": 10, "total": 100, "unit": "volumes", "rate": 0.0},
    }
    assert datetime.datetime.fromisoformat(first["time"]).tzinfo
    assert (second["stage"], second["message"]) == ("", "it went well")
    assert (third["level"], third["job"]) == ("warning", "encode")
    assert third["message"] == "s3://bucket/a: busy; trying again in 0.5 s"


def test_an_error_is_such_a_line_too(capsys, monkeypatch):
    monkeypatch.setenv(console.LOG, "json")
    assert main(["paint"]) == 2
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["exit_code"]) == ("error", 2)
    assert "unknown job 'paint'" in line["message"]
    monkeypatch.setenv(console.LOG, "xml")
    assert main(["model-summary", "--model.input_size", "[8,8,8]"]) == 2
    assert "VOXFLEET_LOG is 'xml'; it must be text or json" in capsys.readouterr().err


def test_durations_are_readable():
    assert [duration(s) for s in (0.4, 59, 65, 7260)] == ["0 s", "59 s", "1 min 05 s", "2 h 01 min"]
