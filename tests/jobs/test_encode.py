"""Mirror images of training heads as rows of their own: what encode makes of them, and what reads them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from voxfleet.config.generation import InterpolateConfig
from voxfleet.config.jobs import EncodeConfig
from voxfleet.data.index import read_index
from voxfleet.data.known import read_known
from voxfleet.data.plan import Plan
from voxfleet.data.shards import read_manifest, read_shard, tensors
from voxfleet.engine.decode import _names
from voxfleet.engine.encode import Encoder
from voxfleet.engine.interpolate import Subjects
from voxfleet.engine.latent_pieces import _measure_shard
from voxfleet.metrics.channels import ChannelSums
from voxfleet.metrics.latents import novelty
from voxfleet.packages import load_autoencoder

COLUMNS = ["subject_id", "label", "split", "source"]


def opened(folder, kind, column):
    """The manifest, the rows without tensors, and the tensors of a folder of shards."""
    manifest = read_manifest(str(folder), kind)
    tables = [read_shard(uri) for uri in manifest.files(str(folder))]
    names = [name for name in (*COLUMNS, "mirrored") if name in tables[0].column_names]
    rows = [row for table in tables for row in table.select(names).to_pylist()]
    return SimpleNamespace(
        folder=str(folder),
        manifest=manifest,
        rows=rows,
        values=np.concatenate([tensors(table, column) for table in tables]),
        mirrored=np.array([row.get("mirrored", False) for row in rows]),
        train=np.array([row["split"] == "train" for row in rows]),
    )


@pytest.fixture(scope="module")
def encode(workspace, symmetric, tmp_path_factory):
    """Run encode on volumes that may be mirrored, into one folder."""
    out = tmp_path_factory.mktemp("mirrored") / "latents"
    given = ["--data", str(symmetric), "--output", str(out), "--resources.workers", "1", "--batch_size", "3"]
    return lambda *more: workspace.run("encode", *given, *more), out


@pytest.fixture(scope="module")
def latents(encode):
    run, out = encode
    assert run("--mirrored", "true") == 0
    return opened(out, "latents", "mu")


@pytest.fixture(scope="module")
def volumes(symmetric):
    return opened(symmetric, "volumes", "volume")


@pytest.fixture(scope="module")
def of_mirror_images(workspace, volumes):
    """The latents of the mirrored training heads."""
    flipped = np.flip(volumes.values[volumes.train], 1).copy()
    return load_autoencoder(str(workspace.demo / "vae")).encode(torch.from_numpy(flipped)[:, None])[0].numpy()


def test_mirrored_rows_are_the_latents_of_mirrored_training_heads(workspace, latents, volumes, of_mirror_images):
    plain = opened(workspace.demo / "latents", "latents", "mu")  # in batches of another size
    assert not plain.mirrored.any()
    np.testing.assert_allclose(latents.values[~latents.mirrored], plain.values, atol=1e-4)
    np.testing.assert_allclose(latents.values[latents.mirrored], of_mirror_images, atol=1e-4)
    assert np.abs(of_mirror_images - np.flip(plain.values[plain.train], 2)).max() > 0.01  # no flipped latents
    rows = [{key: row[key] for key in COLUMNS} for row in latents.rows]
    of_originals = [row for row, train in zip(volumes.rows, volumes.train, strict=True) if train]
    assert [row for row, mirrored in zip(rows, latents.mirrored, strict=True) if mirrored] == of_originals


def test_the_manifest_counts_and_measures_them_as_training_rows(latents):
    found = [(row["split"], row["label"]) for row in latents.rows]
    expected = {s: {c: found.count((s, i)) for i, c in enumerate(("HC", "TLE"))} for s in ("train", "val", "test")}
    assert latents.manifest.counts == expected
    assert sum(expected["train"].values()) == 2 * latents.mirrored.sum()
    mean = latents.values[latents.train].astype(np.float64).mean(axis=(0, 2, 3, 4))
    np.testing.assert_allclose(latents.manifest.mean, mean, rtol=1e-6)


def test_a_shard_that_is_made_again_has_the_same_bytes(workspace, symmetric, latents, tmp_path):
    config = EncodeConfig(
        output=str(tmp_path), data=str(symmetric), autoencoder=str(workspace.demo / "vae"), batch_size=3
    )
    shard = latents.manifest.shards[0]
    assert Encoder(config, False, 0)(shard["file"], 0)[0]["sha256"] == shard["sha256"]


def test_training_draws_them_like_other_rows(latents):
    index = read_index(latents.folder, latents.manifest, ("mu",))["train"]
    plan = Plan(index.labels, index.groups, 4, index.row_bytes(("mu",)), seed=0)
    drawn = index.read(plan.order(0), ("mu",))["mu"]
    corners = drawn[:, 0, 0, 0, 0], latents.values[latents.train][:, 0, 0, 0, 0]
    assert not np.array_equal(*corners)  # in another order
    np.testing.assert_array_equal(*map(np.sort, corners))


def test_a_copy_of_a_mirrored_head_is_not_new(workspace, latents, of_mirror_images):
    manifest = latents.manifest
    shift, scale = (np.array(values).reshape(-1, 1, 1, 1) for values in (manifest.mean, manifest.std))
    copies = torch.from_numpy(((of_mirror_images - shift) / scale).reshape(len(of_mirror_images), -1))

    def found(folder):
        known = read_known(folder, read_manifest(folder, "latents"), manifest.mean, manifest.std)
        return novelty(copies, torch.from_numpy(known.means), torch.from_numpy(known.subjects))

    assert found(latents.folder).abs().max() < 1e-4
    assert found(str(workspace.demo / "latents")).min() > 1e-2


def test_maps_show_them_apart_from_people_and_channels_measure_them(latents, tmp_path):
    (uri, *_), manifest = latents.manifest.files(latents.folder), latents.manifest
    content = {"set": "real", "shard": uri}
    (row,) = _measure_shard(str(tmp_path), manifest.mean, manifest.std, "unit", content)
    rows = latents.rows[: manifest.shards[0]["rows"]]
    splits = read_shard(str(tmp_path / row["file"]))["split"].to_pylist()
    assert splits == ["mirrored" if row["mirrored"] else row["split"] for row in rows]
    trained = sum(row["split"] == "train" for row in rows)
    assert ChannelSums.from_document(row["sums"]).n == trained * latents.values[0, 0].size


def test_decoded_ones_are_named_after_what_they_are(latents):
    names = [name for each in _names(latents.folder, latents.manifest, False).values() for name in each]
    assert len(set(names)) == len(names)
    for row, name in zip(latents.rows, names, strict=True):
        kind = "mirrored" if row["mirrored"] else "decoded"
        assert name == f"{row['subject_id']}/anat/{row['subject_id']}_desc-{kind}_T1w.nii"


def test_a_subject_is_interpolated_as_it_was_scanned(workspace, latents):
    row = int(np.flatnonzero(latents.train)[0])
    subject = latents.rows[row]["subject_id"]
    given = {"output": "unused", "autoencoder": str(workspace.demo / "vae"), "data": latents.folder}
    subjects = Subjects(InterpolateConfig(**given, subjects=(subject, "another")))
    splits = read_index(latents.folder, latents.manifest, ("mu",)).values()
    np.testing.assert_array_equal(subjects._mu(splits, subject), latents.values[row])


def test_the_key_decides_content(encode, latents, fails, capsys):
    run, out = encode
    assert run("--mirrored", "true") == 0
    assert "nothing to do" in capsys.readouterr().err
    assert "was begun with mirrored = True, now it is False" in fails(run)
    assert json.loads((out / ".voxfleet" / "job.json").read_text())["config"]["mirrored"] is True


def test_volumes_that_may_not_be_mirrored_are_refused(workspace, fails, tmp_path):
    line = fails(workspace.run, "encode", "--mirrored", "true", "--output", str(tmp_path / "out"))
    assert "mirrored is true, but demo/volumes does not say that a mirrored head is one of the same class" in line
    assert not (tmp_path / "out").exists()
