"""Campaigns as a user runs them: the gate, what is written, resuming, verifying, one sample by itself."""

import hashlib
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK
import torch
from ray import cloudpickle

from voxfleet.cli import main
from voxfleet.data.shards import read_manifest, read_shard, tensors
from voxfleet.data.synthetic import Writer, sidecar_file
from voxfleet.engine.makers import Maker

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
MORE = ["--campaign.samples", "5", "--save.shard_size", "4", "--resources.workers", "1"]


def rows_of(folder: Path, name: str = "manifest.parquet") -> list[dict]:
    return pq.read_table(folder / name).to_pylist()


def hashes(folder: Path) -> dict[str, str]:
    return {row["sample_id"]: row["sha256"] for row in rows_of(folder)}


def check_whole(folder: Path, number: int) -> list[dict]:
    """Make sure that exactly the samples are there that were asked for; their rows."""
    rows = rows_of(folder)
    assert [row["sample_id"] for row in rows] == [f"syn-{c}-{i:07d}" for c in ("HC", "TLE") for i in range(number)]
    for row in rows:
        assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.nii*")} == {row["file"] for row in rows}
    assert list(folder.rglob("*.tmp")) == []
    return rows


@pytest.fixture(scope="module")
def both(workspace, tmp_path_factory):
    """A campaign that wrote volumes and latents."""
    folder = tmp_path_factory.mktemp("both") / "out"
    assert workspace.run("generate", "--output", str(folder), *MORE, "--save.latents", "true") == 0
    return folder


def test_latent_shards_hold_the_latents_of_the_volumes(workspace, both, tmp_path):
    check_whole(both, 5)
    manifest = read_manifest(str(both / "latents"), "latents")
    tables = [read_shard(uri) for uri in manifest.files(str(both / "latents"))]
    assert manifest.counts["train"] == {"HC": 5, "TLE": 5}
    assert {row["source"] for table in tables for row in table.select(["source"]).to_pylist()} == set(hashes(both))
    for shard, row in zip(manifest.shards, tables, strict=True):
        assert row.num_rows == shard["rows"] >= 2
        assert (tensors(row, "logvar") == -30).all()

    out = tmp_path / "decoded"
    arguments = ["--data", str(both / "latents"), "--autoencoder", str(workspace.demo / "vae"), "--batch_size", "2"]
    assert main(["decode", "--output", str(out), *arguments, "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]) == 0
    decoded = {row["source"]: out / row["file"] for row in rows_of(out)}
    for row in rows_of(both):
        first, second = (nib.load(path) for path in (both / row["file"], decoded[row["sample_id"]]))
        np.testing.assert_allclose(first.get_fdata(), second.get_fdata(), atol=1e-4)
        np.testing.assert_array_equal(first.affine, second.affine)
    assert {row["source"]: row["class"] for row in rows_of(out)} == {r["sample_id"]: r["class"] for r in rows_of(both)}


@pytest.mark.parametrize("name", ["both", "decoded"])
def test_what_is_written_is_valid_bids(workspace, both, tmp_path, name):
    folder = both
    if name == "decoded":
        folder = tmp_path / "decoded"
        assert workspace.run("decode", "--output", str(folder)) == 0
    validator = Path(sys.executable).parent / "bids-validator-deno"
    result = subprocess.run([validator, folder, "--ignoreWarnings"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_record_holds_rates_gate_manifest_and_pictures(workspace):
    client = mlflow.MlflowClient(f"sqlite:///{workspace.demo}/mlflow.db")
    experiment = client.get_experiment_by_name("voxfleet").experiment_id
    (run,) = client.search_runs([experiment], "tags.mlflow.runName = 'generate'", order_by=["start_time"])[:1]
    assert run.data.metrics["samples_HC"] == run.data.metrics["samples_TLE"] == 3
    assert {"acceptance", "samples_per_s", "draw_and_decode_s", "write_s"} <= set(run.data.metrics)
    assert run.data.params["campaign.samples"] == "3"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"manifest.parquet", "summary.json", "HC.png", "TLE.png"} <= files


def test_another_reader_sees_every_voxel_at_the_same_place(both):
    row = rows_of(both)[0]
    ours, theirs = nib.load(both / row["file"]), SimpleITK.ReadImage(str(both / row["file"]))
    assert theirs.GetSize() == ours.shape
    np.testing.assert_allclose(SimpleITK.GetArrayFromImage(theirs).T, ours.get_fdata(), atol=1e-6)
    for voxel in [(0, 0, 0), (3, 5, 7), (15, 19, 15)]:
        x, y, z = theirs.TransformContinuousIndexToPhysicalPoint([float(v) for v in voxel])
        np.testing.assert_allclose((-x, -y, z), nib.affines.apply_affine(ours.affine, voxel), atol=1e-3)  # LPS to RAS


MORE_THAN_CPUS = ["--resources.workers", "9", "--resources.min_workers", "1", "--pools.writers", "8"]
OTHER_SHAPES = ["--batch_size", "3", "--decode_batch_size", "2", "--save.shard_size", "2"]


@pytest.mark.parametrize(
    ("more", "tolerance"),
    [
        pytest.param(["--pools.decoders", "1", "--pools.writers", "3"], 0, marks=pytest.mark.matrix),
        pytest.param(OTHER_SHAPES, 1e-4, marks=pytest.mark.slow),
        pytest.param(["--save.dtype", "float32", "--save.compress", "false"], 1e-4, marks=pytest.mark.matrix),
        pytest.param(MORE_THAN_CPUS, 0, marks=pytest.mark.slow),
    ],
)
def test_samples_are_the_same_however_they_are_made(workspace, both, tmp_path, more, tolerance):
    out = tmp_path / "out"
    assert workspace.run("generate", "--output", str(out), *MORE, *more) == 0
    for first, second in zip(check_whole(both, 5), check_whole(out, 5), strict=True):
        assert first["seed"] == second["seed"]
        if not tolerance:
            assert first["sha256"] == second["sha256"]
        images = (nib.load(both / first["file"]).get_fdata(), nib.load(out / second["file"]).get_fdata())
        np.testing.assert_allclose(*images, atol=tolerance)


def test_latents_alone_need_no_autoencoder(workspace, both, tmp_path):
    out = tmp_path / "out"
    more = ["--save.volumes", "false", "--save.latents", "true", "--autoencoder", "null"]
    assert workspace.run("generate", "--output", str(out), *MORE, *more) == 0
    assert list(out.rglob("*.nii.gz")) == []

    def latents(folder):
        tables = [read_shard(uri) for uri in read_manifest(str(folder), "latents").files(str(folder))]
        return {s: mu for t in tables for s, mu in zip(t["source"].to_pylist(), tensors(t, "mu"), strict=True)}

    first, second = latents(both / "latents"), latents(out / "latents")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


class PlantedMaker(Maker):
    """A decoder that is broken for the first attempt at some samples, and a model that remembers a person."""

    remembered = None

    def __init__(self, *arguments):
        super().__init__(*arguments)
        if self.remembered is not None:
            draw = self._drawer.draw
            self._drawer.draw = lambda samples: self._remember(samples, draw(samples).clone())

    def __call__(self, batch):
        made = super().__call__(batch)
        for volume, sample in zip(made["volumes"], batch, strict=True):
            if sample.attempt == 0 and self.remembered is None:
                if sample.index == 1:
                    volume[:] = 0
                if sample.index == 2:
                    volume[3, 4, 5] = np.nan
                if sample.index == 3:
                    volume[..., :8] *= 0.3  # the axes are reversed: the left half
        return made

    def _remember(self, samples, latents):
        for sample in samples:
            if sample.index == 2 and sample.attempt < 2:
                latents[sample.place(len(latents))] = torch.from_numpy(self.remembered)
        return latents


def test_the_gate_catches_what_a_bad_decoder_makes_and_draws_it_again(workspace, both, tmp_path, monkeypatch):
    model = shutil.copytree(workspace.demo / "model", tmp_path / "model")
    document = json.loads((model / "config.json").read_text())
    checks = [row["checks"] for row in rows_of(both)]
    document["limits"] = {
        name: [min(c[name] for c in checks), max(c[name] for c in checks)] for name in document["limits"]
    }
    (model / "config.json").write_text(json.dumps(document))
    monkeypatch.setattr("voxfleet.engine.campaign.Maker", PlantedMaker)
    out = tmp_path / "out"
    more = ["--output", str(out), "--model", str(model), "--gate.limits", "true", "--gate.slack", "0.5"]
    assert workspace.run("generate", *MORE, *more) == 0
    rows = check_whole(out, 5)
    assert {row["attempt"] for row in rows if row["index"] in (1, 2, 3)} == {1}
    rejected = {(row["class"], row["index"], row["attempt"]): row["reason"] for row in rows_of(out, "rejected.parquet")}
    for name in ("HC", "TLE"):
        assert rejected[name, 1, 0].startswith("brain_mean is 0, allowed is")
        assert rejected[name, 2, 0] == "not finite"
        assert rejected[name, 3, 0].startswith(("symmetry", "brain_mean"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rejected_attempts"]["not finite"] == 2
    assert summary["samples"] == {"HC": 5, "TLE": 5}


def test_a_latent_that_was_trained_on_is_no_sample(workspace, tmp_path, monkeypatch):
    latents = workspace.demo / "latents"
    table = read_shard(str(latents / "part-00000.parquet"))
    number = table["split"].to_pylist().index("train")
    mu, logvar = (tensors(table, name)[number] for name in ("mu", "logvar"))
    noise = np.random.default_rng(0).standard_normal(mu.shape).astype(np.float32)
    monkeypatch.setattr(PlantedMaker, "remembered", mu + np.exp(logvar / 2) * noise)
    monkeypatch.setattr("voxfleet.engine.campaign.Maker", PlantedMaker)
    out = tmp_path / "out"
    assert workspace.run("generate", "--output", str(out), *MORE, "--gate.latents", str(latents)) == 0
    rows = check_whole(out, 5)
    assert {row["attempt"] for row in rows if row["index"] == 2} == {2}
    rejected = rows_of(out, "rejected.parquet")
    assert {(row["class"], row["index"], row["attempt"]) for row in rejected} >= {
        (name, 2, attempt) for name in ("HC", "TLE") for attempt in (0, 1)
    }
    assert all(row["reason"].startswith("novelty is ") for row in rejected)
    assert all(np.isfinite(row["checks"]["novelty"]) for row in rows)


@pytest.mark.slow
def test_a_sample_that_is_never_allowed_ends_the_job_with_3_and_the_rest_stays(
    workspace, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("voxfleet.engine.campaign.Maker", PlantedMaker)
    out = tmp_path / "out"
    assert workspace.run("generate", "--output", str(out), *MORE, "--gate.attempts", "1") == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 of 10 samples are missing" in line
    assert "syn-HC-0000002" in line
    assert "mostly for not finite; raise gate.attempts" in line
    assert not (out / "manifest.parquet").exists()
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert len(before) == 8
    assert workspace.run("generate", "--output", str(out), *MORE) == 0
    assert {row["attempt"] for row in check_whole(out, 5) if row["index"] == 2} == {1}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_verify_makes_again_what_is_missing_or_damaged_and_nothing_else(workspace, both, tmp_path, capsys):
    out = shutil.copytree(both, tmp_path / "out")
    rows = rows_of(out)
    (out / rows[0]["file"]).unlink()
    with (out / rows[7]["file"]).open("r+b") as file:
        file.write(b"x")
    (sidecar := out / sidecar_file(rows[3]["file"])).write_text("{}")
    more = ["--output", str(out), *MORE, "--save.latents", "true"]
    assert workspace.run("generate", *more) == 0
    assert "nothing to do" in capsys.readouterr().err  # it was not asked to look
    assert workspace.run("generate", *more, "--verify") == 0
    assert rows[0]["file"] in capsys.readouterr().err
    check_whole(out, 5)
    assert hashes(out) == hashes(both)
    assert sidecar.read_bytes() == (both / sidecar_file(rows[3]["file"])).read_bytes()
    manifest = read_manifest(str(out / "latents"), "latents")
    sources = [s for uri in manifest.files(str(out / "latents")) for s in read_shard(uri)["source"].to_pylist()]
    assert sorted(sources) == sorted(hashes(both))
    assert sorted(p.name for p in (out / "latents").glob("*.parquet")) == sorted(s["file"] for s in manifest.shards)
    assert workspace.run("generate", *more, "--verify") == 0
    assert "0 are missing or damaged" in capsys.readouterr().err


def test_a_campaign_that_was_killed_after_its_last_sample_gets_its_manifest(workspace, both, tmp_path):
    out = shutil.copytree(both, tmp_path / "out")
    (out / "manifest.parquet").unlink()
    assert workspace.run("generate", "--output", str(out), *MORE, "--save.latents", "true") == 0
    check_whole(out, 5)
    assert hashes(out) == hashes(both)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(workspace, tmp_path, capsys):
    more = ["--output", str(tmp_path / "out"), "--campaign.samples", "{HC: 40, TLE: 20}"]
    assert workspace.run("generate", *more, "--dry-run") == 0
    captured = capsys.readouterr()
    assert "40 HC, 20 TLE, of which 0 are there" in captured.err
    for words in (
        "60 samples to make, in about 30 batches of 2",
        "draw and decode:",
        "GPU hours",
        "GB of images and latents",
    ):
        assert words in captured.out
    assert list(tmp_path.iterdir()) == []


def regenerate(*arguments):
    return main(["regenerate", *map(str, arguments)])


def test_a_sample_is_made_again_by_itself(workspace, both, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workspace.root)
    assert regenerate("syn-TLE-0000003", "--dataset", both, "--output", tmp_path / "again") == 0
    assert "syn-TLE-0000003 is the same, byte for byte" in capsys.readouterr().err
    (row,) = (row for row in rows_of(both) if row["sample_id"] == "syn-TLE-0000003")
    assert (tmp_path / "again" / row["file"]).read_bytes() == (both / row["file"]).read_bytes()


def test_a_sample_that_is_not_what_its_seed_makes_is_told(workspace, both, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workspace.root)
    out = shutil.copytree(both, tmp_path / "out")
    for fragment in (out / ".voxfleet" / "ledger").iterdir():
        table = pq.read_table(fragment)
        number = table.schema.get_field_index("sha256")
        pq.write_table(table.set_column(number, "sha256", [["0" * 64] * len(table)]), fragment)
    assert regenerate("syn-HC-0000001", "--dataset", out) == 3
    assert "syn-HC-0000001 made again is not the same: voxels differ by up to 0" in capsys.readouterr().err


def test_unusable_requests_to_regenerate(fails, workspace, both, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.root)
    assert "has no sample syn-FCD-0000001; it has 10, such as syn-HC-0000000" in fails(
        regenerate, "syn-FCD-0000001", "--dataset", both
    )
    assert "is not an output of generate" in fails(regenerate, "syn-HC-0000001", "--dataset", workspace.demo / "vae")
    assert f"the model of {both} is no longer at gone; say where, by --model" in fails(
        regenerate, "syn-HC-0000001", "--dataset", both, "--model", "gone"
    )
    other = shutil.copytree(workspace.demo / "model", tmp_path / "model")
    document = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**document, "fingerprint": "1" * 64}))
    assert "is not the model of" in fails(regenerate, "syn-HC-0000001", "--dataset", both, "--model", other)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--save.volumes", "false"], "save.volumes and latents are both false"),
        (["--save.dtype", "uint8"], "save.dtype is 'uint8'"),
        (["--autoencoder", "null"], "autoencoder is null, but save.volumes is true"),
        (["--mode", "fast"], "mode is 'fast'"),
        (["--decode_precision", "int8"], "decode_precision is 'int8'"),
        (["--pools.writers", "0"], "pools.writers is 0"),
        (["--gate.latents", "demo/volumes"], "does not describe latents"),
        (["--campaign.mixture", "{FCD: 1}"], "campaign.mixture names class 'FCD'"),
        (["--pools.decoders", "500"], "lower resources.workers and pools.decoders together to"),
    ],
)
def test_requests_that_cannot_be_met(fails, workspace, tmp_path, more, words):
    line = fails(workspace.run, "generate", "--output", str(tmp_path / "out"), "--resources.workers", "1", *more)
    assert words in line
    assert not (tmp_path / "out").exists()


def test_a_smaller_campaign_than_what_is_there_is_refused(fails, workspace, both):
    line = fails(workspace.run, "generate", "--output", str(both), "--save.latents", "true", "--campaign.samples", "2")
    assert "asks for 2 of class HC, but sample 4 of it is there" in line


class FullWriter(Writer):
    """A writer whose disk takes two batches."""

    batches = 0

    def __call__(self, *arguments):
        FullWriter.batches += 1
        if FullWriter.batches > 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        return super().__call__(*arguments)


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_job_with_what_is_missing_and_what_is_there_stays(
    workspace, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    monkeypatch.setattr("voxfleet.engine.campaign.Writer", FullWriter)
    assert workspace.run("generate", "--output", str(out), *MORE, "--save.shard_size", "2") == 4
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "of 10 samples are missing" in line
    assert "cannot write" in line
    assert "then run the same command again" in line
    there = list((out / ".voxfleet" / "ledger").iterdir())
    assert len(there) == 2
    monkeypatch.undo()
    assert workspace.run("generate", "--output", str(out), *MORE) == 0
    check_whole(out, 5)


def test_a_worker_that_cannot_load_its_model_ends_the_job_with_what_is_missing(workspace, tmp_path, capsys):
    model = shutil.copytree(workspace.demo / "model", tmp_path / "model")
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(bytes(data))
    assert workspace.run("generate", "--output", str(tmp_path / "out"), *MORE, "--model", str(model)) == 4
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "10 of 10 samples are missing" in line
    assert "fingerprint" in line
