"""Jobs that are interrupted as a terminal does, and started again, end as undisturbed ones do."""

import hashlib
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from voxfleet.train.checkpoint import CheckpointStore

pytestmark = pytest.mark.slow


def fragments(output: Path) -> int:
    return len(list((output / ".voxfleet" / "ledger").glob("*.parquet")))


def test_an_interrupted_training_ends_with_the_weights_of_an_undisturbed_one(processes, workspace, tmp_path):
    long = ["--trainer.epochs", "24", "--trainer.checkpoint_every", "1", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    stopped, clean = ([*long, "--output", str(tmp_path / n), "--package", str(tmp_path / n / "package")] for n in "ab")

    def is_begun():
        return max(CheckpointStore(str(tmp_path / "a" / "dit")).steps(), default=0) >= 4

    assert processes.interrupt_when(is_begun, signal.SIGINT, "train", *stopped) == 130
    assert not (tmp_path / "a" / "package" / "config.json").exists()
    processes.finish("train", *stopped)
    assert workspace.run("train", *clean) == 0
    weights, expected = (load_file(tmp_path / name / "package" / "model.safetensors") for name in "ab")
    assert {name: value.equal(weights[name]) for name, value in expected.items()} == dict.fromkeys(expected, True)
    histories = [(tmp_path / name / "dit" / "history.json").read_text() for name in "ab"]
    assert histories[0] == histories[1]


def test_an_interrupted_campaign_ends_with_exactly_its_samples(processes, tmp_path):
    output = tmp_path / "out"
    more = ["--output", str(output), "--campaign.samples", "12", "--sampler.steps", "50"]
    more += ["--save.shard_size", "2", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    assert processes.interrupt_when(lambda: fragments(output) >= 2, signal.SIGINT, "generate", *more) == 130
    assert processes.log.read_text().strip().endswith("interrupted; run the same command again to continue")
    assert "Traceback" not in processes.log.read_text()
    assert not (output / "manifest.parquet").exists()
    processes.finish("generate", *more)
    rows = pq.read_table(output / "manifest.parquet").to_pylist()
    assert [row["sample_id"] for row in rows] == [f"syn-{c}-{i:07d}" for c in ("HC", "TLE") for i in range(12)]
    for row in rows:
        assert hashlib.sha256((output / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    assert len(list(output.rglob("sub-*.nii.gz"))) == 24
