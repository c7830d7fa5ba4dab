"""Jobs that are killed anywhere and started again end as undisturbed ones do. Each run is a process of its own."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from voxfleet.train.checkpoint import CheckpointStore

pytestmark = pytest.mark.slow

_DEADLINE_S = 240


@contextlib.contextmanager
def started(workspace, log: Path, job: str, *more: str):
    """The job as a process in a group of its own, which ends with the block."""
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "voxfleet.cli", *workspace.arguments(job, *more)],
            cwd=workspace.root,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def interrupt_when(workspace, log: Path, happened, number: signal.Signals, job: str, *more: str) -> int:
    """Start the job, send it the signal as soon as ``happened()``, and return its exit code."""
    with started(workspace, log, job, *more) as process:
        deadline = time.monotonic() + _DEADLINE_S
        while not happened():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        return process.wait(timeout=60)


def finish(workspace, log: Path, job: str, *more: str) -> None:
    with started(workspace, log, job, *more) as process:
        assert process.wait(timeout=_DEADLINE_S) == 0, log.read_text()


def fragments(output: Path) -> int:
    return len(list((output / ".voxfleet" / "ledger").glob("*.parquet")))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interrupted_training_ends_with_the_weights_of_an_undisturbed_one(workspace, tmp_path, number, code):
    long = ["--trainer.epochs", "60", "--trainer.checkpoint_every", "1", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]

    def arguments(name):
        return [*long, "--output", str(tmp_path / name), "--package", str(tmp_path / name / "package")]

    def has_begun():
        return max(CheckpointStore(str(tmp_path / "killed" / "dit")).steps(), default=0) >= 4

    log = tmp_path / "log"
    assert interrupt_when(workspace, log, has_begun, number, "train", *arguments("killed")) == code
    assert not (tmp_path / "killed" / "package" / "config.json").exists()
    finish(workspace, log, "train", *arguments("killed"))
    finish(workspace, log, "train", *arguments("clean"))
    killed, clean = (load_file(tmp_path / name / "package" / "model.safetensors") for name in ("killed", "clean"))
    assert {name: value.equal(killed[name]) for name, value in clean.items()} == dict.fromkeys(clean, True)
    histories = [(tmp_path / name / "dit" / "history.json").read_text() for name in ("killed", "clean")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interrupted_campaign_ends_with_exactly_its_samples(workspace, tmp_path, number, code):
    output, log = tmp_path / "out", tmp_path / "log"
    more = ["--output", str(output), "--campaign.samples", "12", "--sampler.steps", "50"]
    more += ["--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    assert interrupt_when(workspace, log, lambda: fragments(output) >= 2, number, "generate", *more) == code
    if number == signal.SIGINT:
        assert log.read_text().strip().endswith("interrupted; run the same command again to continue")
        assert "Traceback" not in log.read_text()
    assert not (output / "manifest.parquet").exists()
    finish(workspace, log, "generate", *more)
    rows = pq.read_table(output / "manifest.parquet").to_pylist()
    assert [row["sample_id"] for row in rows] == [f"syn-{c}-{i:07d}" for c in ("HC", "TLE") for i in range(12)]
    for row in rows:
        assert hashlib.sha256((output / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    assert len(list(output.rglob("sub-*.nii.gz"))) == 24


def test_a_killed_cohort_is_completed(workspace, tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    more = ["--output", str(output), "--subjects", "40", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    assert interrupt_when(workspace, log, lambda: fragments(output) >= 3, signal.SIGKILL, "cohort", *more) == -9
    kept = {path: path.stat().st_mtime_ns for path in (output / ".voxfleet" / "ledger").iterdir()}
    finish(workspace, log, "cohort", *more)
    assert len((output / "participants.tsv").read_text().splitlines()) == 41
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    first = (workspace.demo / "cohort" / "sub-0005" / "anat" / "sub-0005_T1w.nii.gz").read_bytes()
    assert (output / "sub-0005" / "anat" / "sub-0005_T1w.nii.gz").read_bytes() == first
