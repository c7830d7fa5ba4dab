"""The worst of days of a campaign: workers and drivers that are killed, and a cluster that changes.

tests/jobs/test_survival.py has a few of the kills in each change.
"""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from deadlines import extend

from voxfleet.cli import main
from voxfleet.data.shards import read_manifest, read_shard

pytestmark = pytest.mark.matrix
SAMPLES, RUNS, KILLS = 400, 2, 5  # of each class; of the driver; of workers in each of these runs
_DEADLINE_S = extend(300)


@dataclass(frozen=True)
class Processes:
    """Jobs of a workspace as processes of their own, which write to ``log``."""

    workspace: Any
    log: Path

    @contextlib.contextmanager
    def started(self, job, *more):
        """The job in a group of its own, which ends with the block."""
        with self.log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "voxfleet.cli", *self.workspace.arguments(job, *more)],
                cwd=self.workspace.root,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def finish(self, job, *more):
        """Run the job to its end."""
        with self.started(job, *more) as process:
            assert process.wait(timeout=_DEADLINE_S) == 0, self.log.read_text()


@pytest.fixture
def processes(workspace, tmp_path):
    """Runs jobs as processes."""
    return Processes(workspace, tmp_path / "log")


def workers_of(process):
    """The actors' processes of a job with a Ray session of its own."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("ray::Host" in part for part in child.cmdline()):
                yield child
        except psutil.Error:  # it is just ending
            continue


def test_every_sample_is_made_once_whoever_is_killed(processes, workspace, tmp_path, monkeypatch):
    output, clean = tmp_path / "out", tmp_path / "clean"
    chance = random.Random(0)
    more = ["--campaign.samples", str(SAMPLES), "--sampler.steps", "20", "--save.shard_size", "16"]
    more += ["--batch_size", "8", "--save.latents", "true", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    killed = 0

    def committed():
        return len(list((output / ".voxfleet" / "ledger").glob("*.parquet")))

    def wait_for_more(process, before):
        deadline = time.monotonic() + _DEADLINE_S
        while committed() <= before:
            assert process.poll() is None, processes.log.read_text()
            assert time.monotonic() < deadline, processes.log.read_text()
            time.sleep(0.02)

    for _ in range(RUNS):
        with processes.started("generate", "--output", str(output), *more) as process:
            for _ in range(KILLS):
                wait_for_more(process, committed())
                chance.choice(list(workers_of(process))).send_signal(signal.SIGKILL)
                killed += 1
            wait_for_more(process, committed())
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=_DEADLINE_S)
        assert not (output / "manifest.parquet").exists()
    assert killed >= 10
    so_far = {
        row["sample_id"]
        for path in (output / ".voxfleet" / "ledger").iterdir()
        for row in pq.read_table(path).to_pylist()
    }
    assert 0 < len(so_far) < 2 * SAMPLES

    other = ["--batch_size", "5", "--resources.workers", "1"]
    processes.finish("generate", "--output", str(output), *more, *other)
    processes.finish("generate", "--output", str(clean), *more)
    rows, undisturbed = (pq.read_table(folder / "manifest.parquet").to_pylist() for folder in (output, clean))
    assert [row["sample_id"] for row in rows] == [f"syn-{c}-{i:07d}" for c in ("HC", "TLE") for i in range(SAMPLES)]
    assert {row["batch_size"] for row in rows} == {8, 5}
    for row, same in zip(rows, undisturbed, strict=True):
        data = (output / row["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        if row["batch_size"] == 8:
            assert row["sha256"] == same["sha256"]
        else:
            images = [nib.load(folder / row["file"]).get_fdata() for folder in (output, clean)]
            np.testing.assert_allclose(*images, atol=1e-4)
    assert len(list(output.rglob("*.nii.gz"))) == 2 * SAMPLES
    assert list(output.rglob("*.tmp")) == []
    latents = read_manifest(str(output / "latents"), "latents")
    shards = [(shard, output / "latents" / shard["file"]) for shard in latents.shards]
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"] for shard, path in shards)
    assert {path for _, path in shards} == set((output / "latents").glob("*.parquet"))
    sources = [name for _, path in shards for name in read_shard(str(path), ["source"])["source"].to_pylist()]
    assert sorted(sources) == [row["sample_id"] for row in rows]

    monkeypatch.chdir(workspace.root)
    for row in chance.sample(rows, 10):
        assert main(["regenerate", row["sample_id"], "--dataset", str(output)]) == 0
