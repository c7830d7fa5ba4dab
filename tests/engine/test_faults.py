"""Killed equals uninterrupted, bit for bit: kill -9 of a worker and of the driver, in the middle of steps."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parent / "drive_fit.py"
ROWS, EPOCHS, BATCH = 31, 4, 7


def drive(asked):
    """Run the script; returns its exit code. What a killed driver leaves running is ended here."""
    process = subprocess.Popen([sys.executable, SCRIPT, json.dumps(asked)], start_new_session=True)
    code = process.wait(timeout=400)
    left = [other for other in psutil.process_iter() if _session(other.pid) == process.pid]
    for other in left:
        other.kill()
    psutil.wait_procs(left)
    return code


def _session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@pytest.fixture
def outcome(tmp_path, latents):
    """Run to the end, however often the driver is killed on the way."""

    def run(name, kills, *, workers, mode, balanced, folder):
        data, _ = latents(rows=ROWS, root=folder)
        marks = tmp_path / name
        marks.mkdir()
        result = marks / "result.json"
        asked = {"data": data, "folder": folder, "name": name, "mode": mode, "workers": workers, "epochs": EPOCHS}
        asked |= {"kills": kills, "marks": str(marks), "balanced": balanced, "result": str(result)}
        drivers = sum(kill["who"] == "driver" for kill in kills)
        codes = [drive(asked) for _ in range(drivers + 1)]
        assert codes == [-signal.SIGKILL] * drivers + [0]
        assert len(list(marks.glob("killed-*"))) == len(kills)
        return json.loads(result.read_text())

    return run


def check(outcome, folder, workers, mode, balanced, seed):
    """Two kills of workers and one of the driver, each at a random draw of epochs 0, 1 and 2."""
    chance = random.Random(seed)
    who = chance.sample(["worker", "worker", "driver"], 3)
    kills = [{"epoch": epoch, "place": chance.randrange(ROWS), "who": name} for epoch, name in enumerate(who)]
    settings = {"workers": workers, "mode": mode, "balanced": balanced, "folder": folder}
    assert outcome("killed", kills, **settings) == outcome("clean", [], **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "mode", "balanced"), [(3, "streamed", True), (2, "kept", False)])
def test_killed_equals_uninterrupted(outcome, tmp_path, workers, mode, balanced):
    check(outcome, str(tmp_path / "runs"), workers, mode, balanced, seed=0)


@pytest.mark.slow
def test_killed_equals_uninterrupted_on_s3(outcome, s3):
    check(outcome, f"{s3}/faults", 2, "streamed", False, seed=3)


@pytest.mark.matrix
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("mode", ["kept", "streamed"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_killed_equals_uninterrupted_in_all_combinations(outcome, tmp_path, workers, mode, seed):
    check(outcome, str(tmp_path / "runs"), workers, mode, seed == 1, seed)
