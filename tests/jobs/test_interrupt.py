"""Jobs that are killed anywhere and started again end as undisturbed ones do. Each run is a process of its own."""

import hashlib
import re
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from voxfleet.train.checkpoint import CheckpointStore

pytestmark = pytest.mark.slow


def fragments(output: Path) -> int:
    return len(list((output / ".voxfleet" / "ledger").glob("*.parquet")))


def test_an_interrupted_training_ends_with_the_weights_of_an_undisturbed_one(processes, tmp_path):
    """Killed at first, then interrupted as a terminal does."""
    long = ["--trainer.epochs", "60", "--trainer.checkpoint_every", "1", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]

    def arguments(name):
        return [*long, "--output", str(tmp_path / name), "--package", str(tmp_path / name / "package")]

    def at(step):
        return max(CheckpointStore(str(tmp_path / "killed" / "dit")).steps(), default=0) >= step

    def goes_on():  # workers outlive a killed driver by some steps: those are not the second run's
        found = re.search(r"dit: going on from step (\d+) of 120\n", processes.log.read_text())
        return found and at(int(found[1]) + 4)

    for happened, number, code in ((lambda: at(4), signal.SIGKILL, -9), (goes_on, signal.SIGINT, 130)):
        assert processes.interrupt_when(happened, number, "train", *arguments("killed")) == code
        assert not (tmp_path / "killed" / "package" / "config.json").exists()
    processes.finish("train", *arguments("killed"))
    processes.finish("train", *arguments("clean"))
    killed, clean = (load_file(tmp_path / name / "package" / "model.safetensors") for name in ("killed", "clean"))
    assert {name: value.equal(killed[name]) for name, value in clean.items()} == dict.fromkeys(clean, True)
    histories = [(tmp_path / name / "dit" / "history.json").read_text() for name in ("killed", "clean")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interrupted_campaign_ends_with_exactly_its_samples(processes, tmp_path, number, code):
    output = tmp_path / "out"
    more = ["--output", str(output), "--campaign.samples", "12", "--sampler.steps", "50"]
    more += ["--save.shard_size", "2", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    assert processes.interrupt_when(lambda: fragments(output) >= 2, number, "generate", *more) == code
    if number == signal.SIGINT:
        assert processes.log.read_text().strip().endswith("interrupted; run the same command again to continue")
        assert "Traceback" not in processes.log.read_text()
    assert not (output / "manifest.parquet").exists()
    processes.finish("generate", *more)
    rows = pq.read_table(output / "manifest.parquet").to_pylist()
    assert [row["sample_id"] for row in rows] == [f"syn-{c}-{i:07d}" for c in ("HC", "TLE") for i in range(12)]
    for row in rows:
        assert hashlib.sha256((output / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    assert len(list(output.rglob("sub-*.nii.gz"))) == 24


def test_a_killed_cohort_is_completed(processes, workspace, tmp_path):
    output = tmp_path / "out"
    more = ["--output", str(output), "--subjects", "40", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    assert processes.interrupt_when(lambda: fragments(output) >= 3, signal.SIGKILL, "cohort", *more) == -9
    kept = {path: path.stat().st_mtime_ns for path in (output / ".voxfleet" / "ledger").iterdir()}
    processes.finish("cohort", *more)
    assert len((output / "participants.tsv").read_text().splitlines()) == 41
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    first = (workspace.demo / "cohort" / "sub-0005" / "anat" / "sub-0005_T1w.nii.gz").read_bytes()
    assert (output / "sub-0005" / "anat" / "sub-0005_T1w.nii.gz").read_bytes() == first
