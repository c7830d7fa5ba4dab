"""Killed equals uninterrupted, bit for bit: kill -9 of workers and the driver in the middle of steps; lost nodes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import pytest
from deadlines import extend

from voxfleet.data.index import read_index
from voxfleet.errors import WorkMissingError

SCRIPT = Path(__file__).parent / "drive_fit.py"
LOSE_NODE = Path(__file__).parent / "lose_node.py"
ROWS, EPOCHS, BATCH = 31, 4, 7


def drive(script, *arguments, said=os.devnull):
    """Run the script; returns its exit code. What a killed driver leaves running is ended here."""
    with open(said, "w") as errors:
        process = subprocess.Popen([sys.executable, script, *arguments], stderr=errors, start_new_session=True)
    try:
        return process.wait(timeout=extend(900))
    finally:
        left = [other for other in psutil.process_iter() if _session(other.pid) == process.pid]
        for other in left:
            other.kill()
        psutil.wait_procs(left)


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
        codes = [drive(SCRIPT, json.dumps(asked)) for _ in range(drivers + 1)]
        assert codes == [-signal.SIGKILL] * drivers + [0]
        assert len(list(marks.glob("killed-*"))) == len(kills)
        return json.loads(result.read_text())

    return run


def kills(seed):
    """Two kills of workers and one of the driver, each at a random draw of epochs 0, 1 and 2."""
    chance = random.Random(seed)
    who = chance.sample(["worker", "worker", "driver"], 3)
    return [{"epoch": epoch, "place": chance.randrange(ROWS), "who": name} for epoch, name in enumerate(who)]


@pytest.mark.parametrize(
    "kind", [pytest.param("elastic", marks=pytest.mark.matrix), pytest.param("warned", marks=pytest.mark.slow)]
)
def test_a_lost_node_leaves_fewer_workers_that_still_see_every_sample_once_an_epoch(latents, tmp_path, kind):
    """Draws after the last checkpoint are done again: then they are the same. A warning leads to a checkpoint.

    After that, when another node joins, the third worker is there again.
    """
    data, manifest = latents(rows=ROWS)
    assert drive(LOSE_NODE, str(tmp_path), kind, said=tmp_path / "said") == 0
    if kind == "warned":
        warned = int(re.search(r"step-(\d+)", (tmp_path / "first").read_text())[1])
        assert 12 <= warned < 60
        assert f"going on from step {warned}\n" in (tmp_path / "said").read_text()
    got, workers = defaultdict(set), defaultdict(set)
    for path in (tmp_path / "seen").iterdir():
        for epoch, place, value in map(json.loads, path.read_text().splitlines()):
            got[epoch, place].add(value)
            workers[epoch].add(path.name)
    numbers = read_index(data, manifest, ("mu",))["train"].read(np.arange(ROWS), ("mu",))["mu"][:, 0, 0, 0, 0]
    for epoch in range(12):
        drawn = [got[epoch, place] - {0.0} for place in range(ROWS)]  # a worker without a draw computes with zeros
        assert sorted(value for values in drawn for value in values) == sorted(numbers.tolist())
    assert workers[1] & workers[11] == set()  # all draw of epoch 0, before their first step
    assert [len(workers[epoch]) for epoch in (1, 11)] == [3, 3 if kind == "warned" else 2]


@pytest.mark.matrix
def test_a_lost_node_ends_a_run_that_needs_it_with_what_is_missing(latents, tmp_path):
    latents(rows=ROWS)
    assert drive(LOSE_NODE, str(tmp_path), "fixed") == WorkMissingError.exit_code
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))


@pytest.mark.matrix
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("mode", ["kept", "streamed"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_killed_equals_uninterrupted_in_all_combinations(outcome, tmp_path, workers, mode, seed):
    """In the middle of steps; tests/jobs/test_survival.py has a few of them in each change."""
    settings = {"workers": workers, "mode": mode, "balanced": seed == 1, "folder": str(tmp_path / "runs")}
    assert outcome("killed", kills(seed), **settings) == outcome("clean", [], **settings)
