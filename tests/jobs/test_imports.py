"""What was made elsewhere: the workspace's autoencoder and latents as other programs leave them, imported again."""

import csv
import json
import re
import textwrap

import numpy as np
import pytest
import safetensors.torch
import torch

from voxfleet.cli import main
from voxfleet.data.shards import read_manifest, read_shard, tensors
from voxfleet.packages import load_autoencoder, load_model

CLASSES = ("HC", "TLE")
ARCHITECTURE = [
    *["--model.channels", "[4,8]", "--model.num_res_blocks", "[1,1]", "--model.norm_num_groups", "4"],
    *["--model.use_convtranspose", "true"],
]


def run(workspace, job, *more):
    """The demo's configuration of an import, and ``more``, in the workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.root)
        return main([job, "--config", str(workspace.configs / job / "demo.yaml"), *map(str, more)])


def import_vae(workspace, output, *more):
    return run(workspace, "import-vae", "--output", output, *ARCHITECTURE, *more)


def package(folder):
    return json.loads((folder / "config.json").read_text())


def latent_rows(folder):
    """All rows of latent shards by subject."""
    manifest = read_manifest(str(folder), "latents")
    rows = {}
    for file in manifest.files(str(folder)):
        table = read_shard(file)
        mu, logvar = tensors(table, "mu"), tensors(table, "logvar")
        for i, row in enumerate(table.select(["subject_id", "label", "split", "source"]).to_pylist()):
            rows[row["subject_id"]] = {**row, "mu": mu[i], "logvar": logvar[i]}
    return manifest, rows


# --- import-vae ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demos_weights_come_back_as_the_demos_autoencoder(workspace, tmp_path, capsys):
    assert import_vae(workspace, tmp_path / "vae") == 0
    assert re.search(r"PSNR of \d+\.\d dB", capsys.readouterr().err)
    ours, theirs = package(tmp_path / "vae"), package(workspace.demo / "vae")
    for key in ("kind", "fingerprint", "architecture", "shape", "geometry"):
        assert ours[key] == theirs[key], key
    assert import_vae(workspace, tmp_path / "vae") == 0
    assert "nothing to do" in capsys.readouterr().err
    assert workspace.run("encode", "--autoencoder", str(tmp_path / "vae"), "--output", str(tmp_path / "latents")) == 0
    assert read_manifest(str(tmp_path / "latents"), "latents") == read_manifest(
        str(workspace.demo / "latents"), "latents"
    )


def test_a_wrapped_checkpoint_and_a_grid_given_by_keys(workspace, tmp_path):
    there = load_autoencoder(str(workspace.demo / "vae"))
    state = {f"module.{name}": value for name, value in there.model.state_dict().items()}
    torch.save({"epoch": 3, "unet_state_dict": state}, tmp_path / "vae.pt")
    grid = ["--data", "null", "--shape", "[16,20,16]"]
    spacing, affine = ["--spacing_mm", "[10,10,10]"], ["--affine", "[[-1,0,0,9],[0,2,0,0],[0,0,3,0],[0,0,0,1]]"]
    checkpoint = ["--checkpoint", tmp_path / "vae.pt"]
    assert import_vae(workspace, tmp_path / "split", *checkpoint, *grid, *spacing, "--model.num_splits", "16") == 0
    assert import_vae(workspace, tmp_path / "vae", *checkpoint, *grid, *spacing) == 0
    here = load_autoencoder(str(tmp_path / "vae"))
    assert here.fingerprint == there.fingerprint
    volumes = torch.rand(2, 1, 16, 20, 16)
    torch.testing.assert_close(here.encode(volumes), there.encode(volumes))
    # prepare put the same grid at the same place, with center world
    assert package(tmp_path / "vae")["geometry"] == package(workspace.demo / "vae")["geometry"]
    assert import_vae(workspace, tmp_path / "other", *checkpoint, *grid, *affine) == 0
    geometry = package(tmp_path / "other")["geometry"]
    assert (geometry["spacing_mm"], geometry["orientation"]) == ([1, 2, 3], "LAS")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model.channels", "[4,4]"], [r"demo/vae/model.safetensors: weight", "model.channels is [4, 4]", "[4, 8]"]),
        (["--model.num_res_blocks", "[1,2]"], ["model.num_res_blocks is [1, 2]", "[1, 1]"]),
        (["--checkpoint", "nowhere.pt"], ["nowhere.pt", "does not exist"]),
        (["--checkpoint", "demo/vae/config.json"], ["config.json", "no known format", ".safetensors"]),
        (["--data", "demo/latents"], ["demo/latents", "volumes"]),
        (["--data", "null"], ["data is null and nothing else is set", "shape and one of spacing_mm and affine"]),
        (["--data", "null", "--shape", "[16,20,16]"], ["data is null and shape is set"]),
        (["--shape", "[16,20,16]"], ["shape is set", "data"]),
        (["--data", "null", "--shape", "[16,20,15]", "--spacing_mm", "[1,1,1]"], ["shape", "multiples of 2"]),
        (["--data", "null", "--shape", "[16,20,16]", "--affine", "[[1,0,0,0]]"], ["affine", "four rows"]),
        (["--data", "null", "--shape", "[16,20,16]", "--spacing_mm", "[0,1,1]"], ["spacing_mm"]),
    ],
)
def test_a_checkpoint_that_cannot_be_used(fails, workspace, tmp_path, more, words):
    line = fails(import_vae, workspace, tmp_path / "vae", *more)
    assert all(word in line for word in words), line
    assert not (tmp_path / "vae").exists()


@pytest.mark.parametrize("part", ["quant_conv_mu", "post_quant_conv", "decoder.blocks.5.conv"])
def test_weights_that_give_no_numbers(fails, workspace, tmp_path, part):
    state = safetensors.torch.load_file(workspace.demo / "vae" / "model.safetensors")
    for name in ("weight", "bias"):
        state[f"{part}.conv.{name}"].fill_(torch.finfo(torch.float32).max)
    safetensors.torch.save_file(state, tmp_path / "vae.safetensors")
    line = fails(import_vae, workspace, tmp_path / "vae", "--checkpoint", tmp_path / "vae.safetensors")
    assert "not finite" in line
    assert not (tmp_path / "vae").exists()


# --- import-latents -----------------------------------------------------------------------------------------------


def import_latents(workspace, output, table, *more):
    files = ["--latents", table.parent, "--table", table]
    return run(workspace, "import-latents", "--output", output, *files, "--samples_per_shard", "5", *more)


SAVERS = (
    ("npy", lambda path, mu: np.save(path, mu)),
    ("npz", lambda path, mu: np.savez(path, mu)),
    ("pt", lambda path, mu: torch.save({"mu": torch.tensor(mu)[None]}, path)),
    ("safetensors", lambda path, mu: safetensors.torch.save_file({"mu": torch.tensor(mu)}, path)),
)


@pytest.fixture
def table(workspace, tmp_path):
    """The means of the workspace's latents, a file each of all formats in turn, and the table that lists them."""
    folder = tmp_path / "files"
    folder.mkdir()
    with (folder / "latents.csv").open("w") as text:
        lines = csv.writer(text)
        lines.writerow(["subject_id", "label", "split", "file"])
        for i, row in enumerate(latent_rows(workspace.demo / "latents")[1].values()):
            ending, save = SAVERS[i % len(SAVERS)]
            name = f"{row['subject_id']}.{ending}"
            save(folder / name, row["mu"])
            lines.writerow([row["subject_id"], CLASSES[row["label"]], row["split"], name])
    return folder / "latents.csv"


def test_the_demos_import_gives_the_demos_latents(workspace):
    """The files are made by the Python in the head of the demo's configuration."""
    head = (workspace.configs / "import-latents" / "demo.yaml").read_text()
    code = textwrap.dedent("\n".join(re.findall(r"^#(   .*)$", head, re.MULTILINE)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.root)
        exec(code, {})
    assert run(workspace, "import-latents") == 0
    ours, our_rows = latent_rows(workspace.demo / "imported" / "latents")
    theirs, their_rows = latent_rows(workspace.demo / "latents")
    for key in ("shape", "classes", "counts", "geometry", "autoencoder"):
        assert getattr(ours, key) == getattr(theirs, key), key
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-6)
    np.testing.assert_allclose(ours.std, theirs.std, rtol=1e-6)
    assert our_rows.keys() == their_rows.keys()
    for subject, row in their_rows.items():
        assert (our_rows[subject]["label"], our_rows[subject]["split"]) == (row["label"], row["split"])
        assert our_rows[subject]["source"].endswith(f"{subject}.npz")
        np.testing.assert_array_equal(our_rows[subject]["mu"], row["mu"])
        np.testing.assert_array_equal(our_rows[subject]["logvar"], row["logvar"])


@pytest.mark.matrix
def test_means_alone_train_a_model_that_is_not_decoded(workspace, fails, table, tmp_path):
    assert import_latents(workspace, tmp_path / "latents", table, "--autoencoder", "null") == 0
    manifest, rows = latent_rows(tmp_path / "latents")
    assert (manifest.autoencoder, manifest.geometry) == (None, {})
    assert [shard["rows"] for shard in manifest.shards] == [5, 5, 2]
    theirs = latent_rows(workspace.demo / "latents")[1]
    for subject, row in rows.items():
        np.testing.assert_array_equal(row["mu"], theirs[subject]["mu"])
        assert (row["logvar"] == -30).all()
    mu = np.stack([row["mu"] for row in rows.values() if row["split"] == "train"]).astype(np.float64)
    np.testing.assert_allclose(manifest.mean, mu.mean(axis=(0, 2, 3, 4)), rtol=1e-6)
    np.testing.assert_allclose(manifest.std, mu.std(axis=(0, 2, 3, 4)), rtol=1e-6)

    outputs = ["--output", str(tmp_path / "runs"), "--package", str(tmp_path / "model")]
    one_epoch = ["--trainer.epochs", "1", "--samples.autoencoder", "null", "--resources.workers", "1"]
    assert workspace.run("train", "--data", str(tmp_path / "latents"), *outputs, *one_epoch) == 0
    model = load_model(str(tmp_path / "model"))
    assert model.sample(["HC"], [1], steps=2).shape == (1, *manifest.shape)
    with pytest.raises(ValueError, match="no affine"):
        _ = model.affine
    line = fails(workspace.run, "generate", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"))
    assert "imported without their autoencoder" in line
    assert not (tmp_path / "out").exists()


def test_a_bad_file_is_named_and_the_same_command_continues_when_it_is_mended(fails, workspace, table, tmp_path):
    path = next(table.parent.glob("sub-0009.*"))
    good = path.read_bytes()
    np.save(path.with_suffix(".npy"), np.full((4, 8, 10, 8), np.nan))
    if path.suffix != ".npy":
        path.with_suffix(".npy").rename(path)
    line = fails(import_latents, workspace, tmp_path / "out", table)
    assert path.name in line
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert list((tmp_path / "out").rglob("*.tmp")) == []
    path.write_bytes(good)
    assert import_latents(workspace, tmp_path / "out", table) == 0
    assert sum(shard["rows"] for shard in read_manifest(str(tmp_path / "out"), "latents").shards) == 12


def test_a_file_unlike_the_first_is_named(fails, workspace, table, tmp_path):
    path = table.parent / "sub-0012.npy"
    table.write_text(re.sub(r"sub-0012\.\w+", path.name, table.read_text()))
    np.save(path, np.zeros((4, 8, 10, 7)))
    line = fails(import_latents, workspace, tmp_path / "a", table)
    assert all(word in line for word in (path.name, "(4, 8, 10, 7)", "sub-0001", "(4, 8, 10, 8)")), line
    with path.open("wb") as file:
        np.savez(file, mu=np.ones((4, 8, 10, 8)), sigma=np.ones((4, 8, 10, 8)))
    line = fails(import_latents, workspace, tmp_path / "b", table)
    assert all(word in line for word in (path.name, "has logvar or sigma", "sub-0001")), line


def test_one_latent_in_two_splits(fails, workspace, table, tmp_path):
    splits = {line.split(",")[0]: line.split(",")[2:] for line in table.read_text().splitlines()[1:]}
    train, test = (next(v for v in splits.values() if v[0] == split) for split in ("train", "test"))
    copy = table.parent / f"copy-{train[1]}"
    copy.write_bytes((table.parent / train[1]).read_bytes())
    table.write_text(table.read_text().replace(test[1], copy.name))
    line = fails(import_latents, workspace, tmp_path / "out", table)
    assert train[1] in line
    assert copy.name in line
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert import_latents(workspace, tmp_path / "out", table, "--audit.allow_across_splits", "true") == 0
    (found,) = read_manifest(str(tmp_path / "out"), "latents").duplicates
    assert found["kind"] == "exact"


def test_a_constant_channel(fails, workspace, table, tmp_path):
    for path in table.parent.glob("sub-*"):
        mu = np.random.default_rng(int(path.stem[-2:])).normal(size=(4, 8, 10, 8))
        mu[2] = 1.5
        path.unlink()
        np.save(path.with_suffix(".npy"), mu)
    table.write_text(re.sub(r"(sub-\d+)\.\w+", r"\1.npy", table.read_text()))
    assert "channel 2 of the latents" in fails(import_latents, workspace, tmp_path / "out", table)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_is_wrong_before_anything_is_begun(fails, workspace, table, tmp_path):
    good = table.read_text()

    def line(*more, text=good):
        table.write_text(text)
        found = fails(import_latents, workspace, tmp_path / "out", table, *more)
        assert not (tmp_path / "out").exists()
        return found

    assert "unknown column 'age'" in line(text=good.replace("file", "file,age", 1))
    assert "sub-0099.npy" in line(text=f"{good}sub-0099,HC,train,sub-0099.npy\n")
    assert "demo/nothing" in line("--autoencoder", "demo/nothing")
    assert "classes" in line("--classes", "[HC, FCD]")
    assert "dtype is 'int8'" in line("--dtype", "int8")
    first = next(table.parent.glob("sub-0001.*"))
    first.rename(first.with_suffix(".npy"))
    np.save(first.with_suffix(".npy"), np.ones((4, 8, 10, 6)))
    found = line(text=good.replace(first.name, "sub-0001.npy"))
    assert "(4, 8, 10, 6)" in found
    assert "demo/vae makes latents of (4, 8, 10, 8)" in found
