"""The way from one volume to another: whole jobs between two seeds and between two subjects, and what they refuse."""

import itertools
import json
import re
import shutil

import mlflow
import nibabel as nib
import numpy as np
import pyarrow as pa
import pytest
import torch

from voxfleet.config.generation import InterpolateConfig
from voxfleet.data.shards import read_manifest, read_shard, table_bytes, tensors
from voxfleet.diffusion.samplers import SamplerConfig
from voxfleet.engine.interpolate import Subjects, between_seeds, between_subjects
from voxfleet.packages import ModelBundle, load_autoencoder, load_model

SAMPLER = SamplerConfig(steps=4, guidance_scale=1.5)
SUBJECTS = ("sub-0002", "sub-0009")
BETWEEN_SUBJECTS = [
    *["--model", "null", "--seeds", "null", "--label", "null"],
    *["--data", "demo/latents", "--subjects", f"[{','.join(SUBJECTS)}]"],
]


def stored(folder):
    """The figures, and the volumes that they list."""
    figures = json.loads((folder / "interpolation.json").read_text())
    images = [nib.load(folder / point["file"]) for point in figures["points"]]
    return figures, np.stack([image.get_fdata() for image in images]), images


def latents_of(folder, subjects):
    manifest, found = read_manifest(str(folder), "latents"), {}
    for uri in manifest.files(str(folder)):
        table = read_shard(uri)
        found |= dict(zip(table["subject_id"].to_pylist(), tensors(table, "mu"), strict=True))
    return manifest, np.stack([found[subject] for subject in subjects])


def lengths(x):
    return x.flatten(1).double().norm(dim=1)


@pytest.fixture(scope="module")
def of_seeds(workspace, tmp_path_factory):
    """The demo's way between two samples, done."""
    folder = tmp_path_factory.mktemp("seeds") / "way"
    assert workspace.run("interpolate", "--output", str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def of_subjects(workspace, tmp_path_factory):
    """A way between two subjects, done."""
    folder = tmp_path_factory.mktemp("subjects") / "way"
    assert workspace.run("interpolate", "--output", str(folder), *BETWEEN_SUBJECTS) == 0
    return folder


# --- Between two seeds


def test_the_ends_are_the_samples_of_the_two_seeds(workspace, of_seeds):
    bundle, autoencoder = load_model(str(workspace.demo / "model")), load_autoencoder(str(workspace.demo / "vae"))
    ends = autoencoder.decode(bundle.sample(["TLE", "TLE"], [1, 2], SAMPLER))[:, 0].numpy()
    figures, volumes, _ = stored(of_seeds)
    np.testing.assert_allclose(volumes[[0, -1]], ends, atol=1e-4)
    assert [point["weight"] for point in figures["points"]] == [0, 0.5, 1]
    between = figures["between"]
    assert (between["model"], between["seeds"], between["label"]) == (bundle.fingerprint, [1, 2], "TLE")
    assert between["sampler"]["steps"] == 4
    assert figures["autoencoder"] == autoencoder.fingerprint


def test_the_noise_keeps_its_length_and_the_ends_are_the_samples_bit_for_bit(workspace, monkeypatch):
    names = {"output": "unused", "autoencoder": "unused", "model": str(workspace.demo / "model")}
    config = InterpolateConfig(**names, seeds=(1, 2), label="TLE", sampler=SAMPLER, batch_size=3)
    seen, sample = [], ModelBundle.sample
    monkeypatch.setattr(ModelBundle, "sample", lambda *a, **k: seen.append(k["noise"]) or sample(*a, **k))
    found = between_seeds(config, torch.linspace(0, 1, 6, dtype=torch.float64), "cpu")
    monkeypatch.undo()
    bundle = load_model(config.model)
    for place, seed in ((0, 1), (5, 2)):
        assert torch.equal(found[place], bundle.sample(["TLE"] * 3, [seed] * 3, SAMPLER)[place % 3])
    assert [len(part) for part in seen] == [3, 3]
    length = lengths(torch.cat(seen))
    assert (length / length.mean() - 1).abs().max() < 0.03  # in the middle of a straight line it is 0.7
    ends = lengths(bundle.initial_noise((1, 2)))
    torch.testing.assert_close(length[[0, -1]], ends)


def test_the_volumes_stand_where_the_training_volumes_do(workspace, of_seeds, of_subjects):
    manifest = read_manifest(str(workspace.demo / "volumes"), "volumes")
    for folder in (of_seeds, of_subjects):
        for image in stored(folder)[2]:
            assert image.shape == manifest.shape
            np.testing.assert_allclose(image.affine, manifest.geometry["affine"], atol=1e-4)


def test_the_figures_are_those_of_the_volumes(of_seeds, of_subjects):
    for folder in (of_seeds, of_subjects):
        figures, volumes, _ = stored(folder)
        differences = [np.abs(after - before).mean() for before, after in itertools.pairwise(volumes)]
        np.testing.assert_allclose(figures["neighbours_differ"], differences, atol=1e-4)
        np.testing.assert_allclose(figures["ends_differ"], np.abs(volumes[-1] - volumes[0]).mean(), atol=1e-4)
        assert 0 < max(differences) < figures["ends_differ"]
        assert (folder / "interpolation.png").read_bytes().startswith(b"\x89PNG")
        files = [
            ".voxfleet",
            "interpolation.json",
            "interpolation.png",
            *(point["file"] for point in figures["points"]),
        ]
        assert sorted(path.name for path in folder.iterdir()) == files


def test_the_same_command_again_has_nothing_to_do(workspace, of_seeds, capsys):
    before = {path: path.stat().st_mtime_ns for path in of_seeds.iterdir()}
    assert workspace.run("interpolate", "--output", str(of_seeds)) == 0
    assert "is complete, nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in of_seeds.iterdir()} == before


def test_the_record_holds_the_run_with_its_picture(workspace, of_seeds):
    client = mlflow.MlflowClient(f"sqlite:///{workspace.demo}/mlflow.db")
    key = json.loads((of_seeds / ".voxfleet" / "job.json").read_text())["record"]
    (run,) = client.search_runs(
        [client.get_experiment_by_name("voxfleet").experiment_id], f"tags.`voxfleet.key` = '{key}'"
    )
    assert (run.info.run_name, run.info.status) == ("interpolate", "FINISHED")
    assert run.data.metrics["ends_differ"] == stored(of_seeds)[0]["ends_differ"]
    assert "interpolation.png" in [file.path for file in client.list_artifacts(run.info.run_id)]


# --- Between two subjects


def test_the_way_between_subjects_is_an_arc_of_standardised_latents(workspace, of_subjects):
    manifest, mu = latents_of(workspace.demo / "latents", SUBJECTS)
    mean, std = (np.array(values)[:, None, None, None] for values in (manifest.mean, manifest.std))
    start, end = (mu - mean) / std
    angle = np.arccos((start * end).sum() / np.linalg.norm(start) / np.linalg.norm(end))
    middle = (start + end) / (2 * np.cos(angle / 2)) * std + mean
    way = torch.from_numpy(np.stack([mu[0], middle, mu[1]]).astype(np.float32))
    expected = load_autoencoder(str(workspace.demo / "vae")).decode(way)[:, 0].numpy()
    figures, volumes, _ = stored(of_subjects)
    np.testing.assert_allclose(volumes, expected, atol=1e-4)
    assert figures["between"] == {"data": manifest.digest, "subjects": list(SUBJECTS)}


def test_latents_between_subjects_keep_their_length_around_the_mean():
    rng = np.random.default_rng(0)
    mean, std = [3.0, -5.0], [0.5, 2.0]
    shift, scale = (np.array(values)[:, None, None, None] for values in (mean, std))
    mu = (rng.normal(size=(2, 2, 6, 6, 6)) * scale + shift).astype(np.float16)
    found = between_subjects(mu, mean, std, torch.linspace(0, 1, 5, dtype=torch.float64), "cpu")
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[[0, -1]], mu, atol=1e-5)
    length = lengths((found - torch.from_numpy(shift)) / torch.from_numpy(scale))
    assert (length / length.mean() - 1).abs().max() < 0.03


def test_of_a_subject_with_several_images_the_first_is_taken(workspace, tmp_path):
    latents = shutil.copytree(workspace.demo / "latents", tmp_path / "latents")
    shard = latents / "part-00000.parquet"
    table = read_shard(str(shard))
    column = table.column_names.index("subject_id")
    table = table.set_column(column, "subject_id", pa.array(["other", "twice", "twice", *["others"] * 2]))
    table = table.set_column(table.column_names.index("split"), "split", pa.array(["val"] * 5))
    shard.write_bytes(table_bytes(table))
    names = {"output": "unused", "autoencoder": "unused", "data": str(latents)}
    config = InterpolateConfig(**names, subjects=("other", "twice"), points=2)
    found = Subjects(config).latents()(config, torch.tensor([0.0, 1.0]), "cpu")
    np.testing.assert_allclose(found, tensors(table, "mu")[:2], atol=1e-4)


# --- What is refused


def test_requests_that_are_no_way(fails, workspace, tmp_path):
    def line(*more):
        return fails(workspace.run, "interpolate", "--output", str(tmp_path / "out"), *more)

    ways = "give model and seeds and label, or else data and subjects"
    assert ways in line("--data", "demo/latents", "--subjects", "[a, b]")
    assert f"model and seeds of model, seeds, label, data, subjects is set; {ways}" in line("--label", "null")
    assert f"nothing of model, seeds, label, data, subjects is set; {ways}" in line(*BETWEEN_SUBJECTS[:6])
    assert "seeds is [4, 4]; give two that differ" in line("--seeds", "[4, 4]")
    assert "subjects is ['a', 'a']; give two that differ" in line(*BETWEEN_SUBJECTS, "--subjects", "[a, a]")
    assert "seeds is [-1, 2]; each must be 0 or more" in line("--seeds", "[-1, 2]")
    assert f"seeds is [1, {2**63}]; each must be 0 or more, and below 2**63" in line("--seeds", f"[1, {2**63}]")
    assert "points is 1; it must be at least 2" in line("--points", "1")
    assert "batch_size is 0" in line("--batch_size", "0")
    assert "resources.workers is 2; one worker does all" in line("--resources.workers", "2")
    assert "precision is 'int8'" in line("--precision", "int8")
    assert list(tmp_path.iterdir()) == []


def test_ends_that_are_not_there_and_samplers_that_add_noise(fails, workspace, tmp_path):
    def line(*more):
        return fails(workspace.run, "interpolate", "--output", str(tmp_path / "out"), *more)

    assert re.search(r"label is 'FCD'; the classes of .*demo/model are HC, TLE", line("--label", "FCD"))
    assert "sampler.name is 'ddpm' (eta 0), which adds noise at each step" in line("--sampler.name", "ddpm")
    assert "sampler.name is 'ddim' (eta 0.5), which adds noise" in line("--sampler.eta", "0.5")
    assert "sampler.name is 'euler'; a model trained with schedule" in line("--sampler.name", "euler")
    assert "sampler.steps is 2000" in line("--sampler.steps", "2000")
    unknown = line(*BETWEEN_SUBJECTS, "--subjects", "[sub-0002, nobody]")
    assert re.search(r"demo/latents has no subject 'nobody'; it has 12, such as sub-\d+ and sub-\d+", unknown)
    assert "holds no finished latents" in line(*BETWEEN_SUBJECTS, "--data", "demo/nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", [[], BETWEEN_SUBJECTS])
def test_an_autoencoder_that_did_not_make_the_latents(fails, workspace, tmp_path, way):
    other = shutil.copytree(workspace.demo / "vae", tmp_path / "vae")
    document = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**document, "fingerprint": "0" * 64}))
    more = ["--output", str(tmp_path / "out"), "--autoencoder", str(other)]
    line = fails(workspace.run, "interpolate", *more, *way)
    assert "000000000000" in line
    assert ("demo/latents" if way else "demo/model") in line
    assert not (tmp_path / "out").exists()


def test_latents_without_an_autoencoder(fails, workspace, tmp_path):
    latents = shutil.copytree(workspace.demo / "latents", tmp_path / "latents")
    document = json.loads((latents / "manifest.json").read_text())
    (latents / "manifest.json").write_text(json.dumps({**document, "autoencoder": None}))
    more = ["--output", str(tmp_path / "out"), *BETWEEN_SUBJECTS, "--data", str(latents)]
    assert "imported without their autoencoder" in fails(workspace.run, "interpolate", *more)
    assert not (tmp_path / "out").exists()
