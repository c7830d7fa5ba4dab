"""A node that is lost in the middle of a job, and another that joins: the end is that of an undisturbed run."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxfleet.data.shards import read_manifest, read_shard, tensors

pytestmark = pytest.mark.slow
SURVIVE = Path(__file__).parent / "survive.py"
SAMPLES = 40


@pytest.fixture(scope="module")
def survived(workspace, tmp_path_factory):
    """The folder in which the jobs ran on a cluster that lost a node in each, and how they ended."""
    folder = tmp_path_factory.mktemp("survived")
    more = {
        "prepare": ["--source.bids", str(workspace.demo / "cohort"), "--subjects_per_shard", "1"],
        "encode": ["--data", "prepare", "--autoencoder", str(workspace.demo / "vae")],
        "generate": [
            *["--model", str(workspace.demo / "model"), "--autoencoder", str(workspace.demo / "vae")],
            *["--gate.latents", "null", "--campaign.samples", str(SAMPLES), "--save.shard_size", "2"],
        ],
    }
    jobs = [
        {
            "arguments": workspace.arguments(job, *arguments, "--output", job, "--tracking.uri", "null"),
            "ledger": f"{job}/.voxfleet/ledger",
            "fragments": 3,
        }
        for job, arguments in more.items()
    ]
    command = [sys.executable, SURVIVE, json.dumps({"folder": str(folder), "jobs": jobs})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def test_every_job_ends_well_after_its_node_was_lost_in_the_middle(survived):
    _, ended, said = survived
    assert {job: how["code"] for job, how in ended.items()} == {"prepare": 0, "encode": 0, "generate": 0}, said
    for job, units in (("prepare", 12), ("encode", 12), ("generate", SAMPLES)):
        assert 3 <= ended[job]["lost_at"] < units


def contents(folder, kind, column):
    """What a folder of shards holds of each subject."""
    found = {}
    for file in read_manifest(str(folder), kind).files(str(folder)):
        table = read_shard(file)
        found |= dict(zip(table["subject_id"].to_pylist(), tensors(table, column), strict=True))
    return found


@pytest.mark.parametrize(("job", "kind", "column"), [("prepare", "volumes", "volume"), ("encode", "latents", "mu")])
def test_shards_hold_what_they_hold_without_a_loss(survived, workspace, job, kind, column):
    there, here = contents(survived[0] / job, kind, column), contents(workspace.demo / kind, kind, column)
    assert there.keys() == here.keys()
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, atol=1e-5)


def test_a_campaign_has_each_sample_once_and_those_of_an_undisturbed_one_are_the_same(survived, workspace):
    folder = survived[0] / "generate"
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    assert [row["sample_id"] for row in rows] == [f"syn-{c}-{i:07d}" for c in ("HC", "TLE") for i in range(SAMPLES)]
    for row in rows:
        assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    undisturbed = {
        row["sample_id"]: row["sha256"]
        for row in pq.read_table(workspace.demo / "synthetic" / "manifest.parquet").to_pylist()
    }
    assert {row["sample_id"]: row["sha256"] for row in rows if row["sample_id"] in undisturbed} == undisturbed
    assert list(folder.rglob("*.tmp")) == []
