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


@pytest.mark.parametrize(
    ("units", "seconds", "says"),
    [
        (102, 42, "42 s, 2.43 images/s"),
        (1180, 1, "1 s, 1180 images/s"),
        (1_000_000, 10, "10 s, 100000 images/s"),
        (1, 14_400, "4 h 00 min, 0.0000694 images/s"),
        (102, 0.001, "0 s"),
        (0, 42, "42 s"),
    ],
)
def test_the_summary_has_the_rate_over_its_time(clock, capsys, units, seconds, says):
    progress = Progress("prepare", 2 * units, "images")
    progress.skip(units)  # of an earlier run
    clock[0] += seconds
    for part in (units // 2, units - units // 2):  # all at the end
        progress.advance(part)
        clock[0] += 1e-6
    capsys.readouterr()
    progress.finish("done")
    assert capsys.readouterr().err == f"prepare: done ({says})\n"


def test_units_that_come_at_once_have_no_rate_yet(clock, capsys):
    progress = Progress("encode", 1000, "volumes")
    clock[0] += 40
    progress.advance(1)
    clock[0] += console._LOG_EVERY_S
    progress.skip(300)  # not of this time, though it is counted after the first units
    progress.advance(59)
    progress._shown -= console._LOG_EVERY_S  # the next line is due
    assert capsys.readouterr().err.splitlines() == [
        "encode: 1/1000 volumes",
        "encode: 360/1000 volumes, 1.97/s, 5 min 25 s left",
    ]
    burst = Progress("encode", 100_000, "volumes")
    clock[0] += 40
    burst.advance(1)
    burst._shown -= console._LOG_EVERY_S
    clock[0] += 0.1
    burst.advance(15)
    assert capsys.readouterr().err.splitlines() == ["encode: 1/100000 volumes", "encode: 16/100000 volumes"]
    clock[0] += 30
    burst.advance(59_994)
    assert ", 1990/s, " in capsys.readouterr().err
