"""The path with everything but the record on s3://: made there, read from there, and complete there."""

import hashlib

import numpy as np
import pytest

import voxfleet
from voxfleet import storage
from voxfleet.data.index import read_index
from voxfleet.data.shards import read_manifest, read_shard

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def remote(workspace, s3):
    """The demo's folders on S3, and the jobs that make them, by the arguments that send them there."""
    root = f"{s3}/demo"
    jobs = {
        "prepare": ["--output", f"{root}/volumes"],
        "encode": ["--data", f"{root}/volumes", "--output", f"{root}/latents"],
        "train": [
            *["--data", f"{root}/latents", "--output", f"{root}/runs", "--package", f"{root}/model"],
            *["--trainer.epochs", "2"],
        ],
        "generate": [
            *["--model", f"{root}/model", "--output", f"{root}/synthetic"],
            *["--campaign.samples", "1"],
        ],
    }
    for job, arguments in jobs.items():
        assert workspace.run(job, *arguments) == 0, job
    return root, jobs


def test_the_shards_on_s3_are_those_of_a_local_run(workspace, remote):
    root, _ = remote
    for name, kind in (("volumes", "volumes"), ("latents", "latents")):
        there, here = read_manifest(f"{root}/{name}", kind), read_manifest(str(workspace.demo / name), kind)
        assert there == here
        assert sum(map(len, read_index(f"{root}/{name}", there, ()).values())) == 12
        for shard in there.shards:
            assert hashlib.sha256(storage.read_bytes(f"{root}/{name}/{shard['file']}")).hexdigest() == shard["sha256"]


def test_a_package_on_s3_samples_as_what_was_generated_from_it(workspace, remote):
    root, _ = remote
    bundle = voxfleet.load_model(f"{root}/model")
    assert np.isfinite(bundle.sample(["HC"], [1], sampler="ddim", steps=2).numpy()).all()
    rows = read_shard(f"{root}/synthetic/manifest.parquet").to_pylist()
    assert len(rows) == 2
    for row in rows:
        assert hashlib.sha256(storage.read_bytes(f"{root}/synthetic/{row['file']}")).hexdigest() == row["sha256"]


def test_checkpoints_and_history_are_on_s3(remote):
    root, _ = remote
    assert storage.read_json(f"{root}/runs/dit/history.json")[-1]["step"] == 4
    assert [name for name in storage.names(f"{root}/runs/dit") if name.startswith("checkpoint")]


def test_what_is_complete_on_s3_is_passed_over(workspace, remote, capsys):
    _, jobs = remote
    for job, arguments in jobs.items():
        assert workspace.run(job, *arguments) == 0
    assert capsys.readouterr().err.count("is complete, nothing to do") == len(jobs)


def test_a_damaged_shard_on_s3_is_named(remote, s3):
    root, _ = remote
    folder = f"{s3}/damaged"
    manifest = read_manifest(f"{root}/latents", "latents")
    for shard in manifest.shards:
        storage.write_bytes(f"{folder}/{shard['file']}", storage.read_bytes(f"{root}/latents/{shard['file']}")[:-9])
    with pytest.raises(voxfleet.errors.UserError, match=r"part-00000\.parquet is missing or damaged"):
        read_index(folder, manifest, ("mu",))
