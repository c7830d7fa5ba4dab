"""The whole path at a tiny size: formats, geometry, statistics, repetition."""

import dataclasses
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from voxfleet.data.shards import read_manifest, read_shard, tensors
from voxfleet.packages import load_autoencoder, load_model


def rows_of(folder: Path, kind: str) -> tuple[dict, list[dict]]:
    manifest = read_manifest(str(folder), kind)
    return manifest, [row for uri in manifest.files(str(folder)) for row in read_shard(uri).to_pylist()]


def column(folder: Path, kind: str, name: str) -> np.ndarray:
    return np.concatenate([tensors(read_shard(u), name) for u in read_manifest(str(folder), kind).files(str(folder))])


def synthetic_rows(workspace) -> list[dict]:
    return pq.read_table(workspace.demo / "synthetic" / "manifest.parquet").to_pylist()


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def bids_errors(folder: Path) -> str:
    validator = Path(sys.executable).parent / "bids-validator-deno"
    command = [validator, folder, "--ignoreWarnings", "--recursive"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout + result.stderr if result.returncode else ""


@pytest.mark.parametrize("name", ["cohort", "synthetic"])
def test_datasets_are_valid_bids(workspace, name):
    assert bids_errors(workspace.demo / name) == ""


@pytest.mark.parametrize(("name", "kind"), [("volumes", "volumes"), ("latents", "latents")])
def test_manifests_describe_their_shards(workspace, name, kind):
    folder = workspace.demo / name
    manifest, rows = rows_of(folder, kind)
    assert len({row["subject_id"] for row in rows}) == len(rows) == 12
    for shard in manifest.shards:
        assert hashlib.sha256((folder / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
        assert pq.read_metadata(folder / shard["file"]).num_rows == shard["rows"]
    for split, by_class in manifest.counts.items():
        for label, class_name in enumerate(manifest.classes):
            there = sum(row["split"] == split and row["label"] == label for row in rows)
            assert there == by_class[class_name] > 0


def test_labels_are_those_of_the_participants(workspace):
    lines = (workspace.demo / "cohort" / "participants.tsv").read_text().splitlines()
    header = lines[0].split("\t")
    groups = {f[0]: f[header.index("group")] for f in (line.split("\t") for line in lines[1:])}
    _, rows = rows_of(workspace.demo / "volumes", "volumes")
    assert {row["subject_id"]: ("HC", "TLE")[row["label"]] for row in rows} == groups


def test_statistics_come_from_the_training_split_alone(workspace):
    _, rows = rows_of(workspace.demo / "latents", "latents")
    train = np.array([row["split"] == "train" for row in rows])
    mu = column(workspace.demo / "latents", "latents", "mu").astype(np.float64)[train]
    variance = np.exp(column(workspace.demo / "latents", "latents", "logvar").astype(np.float64)[train])
    axes = (0, 2, 3, 4)
    manifest = read_manifest(str(workspace.demo / "latents"), "latents")
    np.testing.assert_allclose(manifest.mean, mu.mean(axis=axes), rtol=1e-6)
    np.testing.assert_allclose(manifest.std, np.sqrt(mu.var(axis=axes) + variance.mean(axis=axes)), rtol=1e-6)
    volumes = column(workspace.demo / "volumes", "volumes", "volume").astype(np.float64)[train]
    np.testing.assert_allclose(read_manifest(str(workspace.demo / "volumes"), "volumes").mean, volumes.mean())


def test_encoded_latents_are_the_autoencoders(workspace):
    autoencoder = load_autoencoder(str(workspace.demo / "vae"))
    volumes = column(workspace.demo / "volumes", "volumes", "volume")
    mu, _ = autoencoder.encode(torch.from_numpy(volumes[:2])[:, None])
    np.testing.assert_allclose(mu, column(workspace.demo / "latents", "latents", "mu")[:2], atol=1e-4)


def test_synthetic_volumes_stand_where_the_training_volumes_do(workspace):
    manifest = read_manifest(str(workspace.demo / "volumes"), "volumes")
    rows = synthetic_rows(workspace)
    assert [row["sample_id"] for row in rows] == [f"syn-{c}-{i:07d}" for c in ("HC", "TLE") for i in range(3)]
    for row in rows:
        path = workspace.demo / "synthetic" / row["file"]
        image = nib.load(path)
        assert image.shape == manifest.shape
        np.testing.assert_allclose(image.affine, manifest.geometry["affine"], atol=1e-4)
        assert image.get_data_dtype() == np.int16
        assert image.header.get_xyzt_units()[0] == "mm"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
        sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
        assert sidecar["Synthetic"] is True
        assert sidecar["Seed"] == row["seed"]


def test_a_sample_can_be_made_again_from_the_packages_alone(workspace):
    row = synthetic_rows(workspace)[4]
    bundle = load_model(str(workspace.demo / "model"))
    torch.set_num_threads(row["threads"])
    labels, seeds = ["TLE"] * row["batch_size"], [row["seed"]] * row["batch_size"]
    latents = bundle.sample(labels, seeds, sampler="ddim", steps=4, guidance_scale=1.5)
    volume = load_autoencoder(str(workspace.demo / "vae")).decode(latents)[0, 0].numpy()
    stored = nib.load(workspace.demo / "synthetic" / row["file"]).get_fdata()
    np.testing.assert_allclose(volume, stored, atol=1e-4)


def test_running_everything_again_changes_nothing(workspace, capsys):
    before = digests(workspace.demo)
    for job in ("cohort", "prepare", "train-vae", "encode", "train", "generate", "evaluate"):
        assert workspace.run(job) == 0
    assert digests(workspace.demo) == before
    assert capsys.readouterr().err.count("nothing to do") == 7


@pytest.mark.slow
def test_a_larger_campaign_keeps_what_is_there_and_equals_one_made_at_once(workspace, tmp_path):
    """Whatever batches the samples were made in, they are the same bytes."""
    files = {row["file"]: row["sha256"] for row in synthetic_rows(workspace)}
    there = str(tmp_path / "grown")
    assert workspace.run("generate", "--output", there, "--campaign.samples", "1") == 0
    first = digests(tmp_path / "grown" / "sub-synHC0000000")
    assert workspace.run("generate", "--output", there, "--campaign.samples", "3") == 0
    assert digests(tmp_path / "grown" / "sub-synHC0000000") == first
    grown = pq.read_table(tmp_path / "grown" / "manifest.parquet").to_pylist()
    assert {row["file"]: row["sha256"] for row in grown} == files
    assert [str(p) for p in (tmp_path / "grown").rglob("*.tmp")] == []


def test_mlflow_holds_one_finished_run_a_job(workspace):
    client = mlflow.MlflowClient(f"sqlite:///{workspace.demo}/mlflow.db")
    runs = {
        run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("voxfleet").experiment_id])
    }
    assert set(runs) >= {"cohort", "prepare", "vae", "encode", "dit", "generate", "evaluate"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["dit"].data.params["model.depth"] == "2"
    assert "val_loss" in runs["dit"].data.metrics
    assert "val_psnr" in runs["vae"].data.metrics
    steps = [metric.step for metric in client.get_metric_history(runs["dit"].info.run_id, "loss")]
    assert steps == sorted(set(steps))


def test_the_page_is_self_contained_and_shows_every_figure(workspace):
    page = (workspace.demo / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    figures = json.loads((workspace.demo / "report" / "figures.json").read_text())
    assert f"{figures['psnr']:.1f} dB" in page
    found = figures["sets"]["synthetic"]["figures"]
    assert found["finite"]["passed"]
    assert found["place"]["found"]["value"] == pytest.approx(0, abs=1e-3)
    for figure in found.values():
        assert figure["name"] in html.unescape(page)
        assert figure["reason"] or f"{figure['found']['value']:.3g}" in page
    stamp = json.loads((workspace.demo / "synthetic" / "release.json").read_text())
    assert stamp["release"] == figures["sets"]["synthetic"]["release"]
    for png in (workspace.demo / "report").glob("*.png"):
        assert png.read_bytes().startswith(b"\x89PNG")
    assert len(list((workspace.demo / "report").glob("*.png"))) == page.count("<img")


def test_runs_keep_their_history(workspace):
    for run, steps in (("vae", 6), ("dit", 6)):
        history = json.loads((workspace.demo / "runs" / run / "history.json").read_text())
        assert history[-1]["step"] == steps
        assert any("val_l1" in point or "val_loss" in point for point in history)


@pytest.mark.matrix
def test_a_training_that_was_killed_while_it_was_recorded_is_recorded_by_the_same_command(workspace, capsys):
    history = workspace.demo / "runs" / "vae" / "history.json"
    before, package = history.read_text(), (workspace.demo / "vae" / "model.safetensors").read_bytes()
    history.unlink()
    assert workspace.run("train-vae") == 0
    assert "nothing to do" not in capsys.readouterr().err
    assert history.read_text() == before
    assert (workspace.demo / "vae" / "model.safetensors").read_bytes() == package


def test_float16_shards_hold_the_same_latents(workspace, tmp_path):
    more = ["--dtype", "float16", "--resources.workers", "1"]
    assert workspace.run("encode", "--output", str(tmp_path / "half"), *more) == 0
    half = column(tmp_path / "half", "latents", "mu")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, column(workspace.demo / "latents", "latents", "mu"), atol=2e-2)
    manifest = read_manifest(str(tmp_path / "half"), "latents")
    assert dataclasses.replace(manifest, shards=[]) == dataclasses.replace(
        read_manifest(str(workspace.demo / "latents"), "latents"), shards=[]
    )


@pytest.mark.matrix
def test_a_page_is_made_anew_when_the_campaign_has_grown(workspace, tmp_path):
    copy = dataclasses.replace(workspace, root=Path(shutil.copytree(workspace.root, tmp_path / "copy", symlinks=True)))
    assert "6 synthetic volumes" in (copy.demo / "report.html").read_text()
    assert copy.run("generate", "--campaign.samples", "4") == 0
    assert copy.run("evaluate") == 0
    assert "8 synthetic volumes" in (copy.demo / "report.html").read_text()


@pytest.mark.matrix
def test_a_package_may_lie_in_its_run(workspace, tmp_path):
    """The default of ``package``; and a claim that was killed before its file was written does not lock the folder."""
    (tmp_path / "runs" / "dit" / ".voxfleet").mkdir(parents=True)
    more = ["--package", "null", "--trainer.epochs", "1", "--resources.workers", "1"]
    assert workspace.run("train", "--output", str(tmp_path / "runs"), *more) == 0
    assert load_model(str(tmp_path / "runs" / "dit" / "package")).classes == ("HC", "TLE")


def test_train_trains_as_it_was_asked(workspace, monkeypatch):
    seen = []
    monkeypatch.setattr("voxfleet.engine.train.train_package", lambda *_, recipe, **__: seen.append(recipe))
    asked = ["--gradient_checkpointing", "true", "--diffusion.weighting", "min-snr", "--model.learn_sigma", "false"]
    assert workspace.run("train", "--output", "elsewhere", "--package", "elsewhere/model", *asked) == 0
    (recipe,) = seen
    assert recipe.build().gradient_checkpointing
    assert recipe.diffusion.weighting == "min-snr"
    assert not (workspace.root / "elsewhere").exists()
