"""The latents job on planted latents: what is found, going on, bad input; and on those of the demo."""

import json
import shutil
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch

from voxfleet.cli import main
from voxfleet.data.geometry import geometry_of
from voxfleet.data.latents import manifest_fields, write_latents
from voxfleet.data.shards import SPLITS, Manifest, read_manifest, shard_name, write_manifest
from voxfleet.models.vae import LOGVAR, AutoencoderConfig, build_autoencoder
from voxfleet.packages import architecture, write_package

SHAPE, CLASSES = (2, 4, 4, 4), ("HC", "TLE")
PEOPLE = {"train": 16, "val": 4, "test": 4}
FAST = ["--points", "3", "--volumes", "3", "--umap", "false"]


def mu_of(label, seed):
    """Noise; class 1 has a corner of its own."""
    mu = np.random.default_rng(seed).normal(1, 2, SHAPE).astype(np.float32)
    mu[:, :2, :2, :2] += 8 * label
    return mu


def write(folder, labels, splits, *, logvar=(-2.0, 0.5), seed=0, shown=None, **changed):
    """Latents of two shards; ``shown`` are the classes that they look like, where those are others."""
    mu = np.stack([mu_of(label, seed + i) for i, label in enumerate(shown or labels)])
    noise = np.broadcast_to(np.array(logvar, np.float32)[:, None, None, None], mu.shape)
    subjects = [f"sub-{seed + i:03d}" for i in range(len(mu))]
    written = []
    for number, rows in enumerate(np.array_split(np.arange(len(mu)), 2)):
        values = zip(("subject_id", "label", "split", "source"), (subjects, labels, splits, subjects), strict=True)
        columns = {name: [value[i] for i in rows] for name, value in values}
        written.append(write_latents(str(folder), shard_name(number), columns, mu[rows], noise[rows], "float32"))
    found = list(zip(splits, labels, strict=True))
    counts = {s: {name: found.count((s, label)) for label, name in enumerate(CLASSES)} for s in SPLITS}
    fields = {
        **{"kind": "latents", "shape": SHAPE, "classes": CLASSES, "counts": counts, "limits": {}},
        **{"geometry": geometry_of(np.eye(4)), **manifest_fields(written)},
    }
    write_manifest(str(folder), Manifest(**{**fields, **changed}))
    return mu, noise


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Real latents whose classes differ, synthetic ones that all look like HC, and an autoencoder of random weights."""
    root = tmp_path_factory.mktemp("planted")
    torch.manual_seed(0)
    config = AutoencoderConfig(latent_channels=2, channels=(4, 8), num_res_blocks=(1, 1), norm_num_groups=4)
    document = {"architecture": architecture(config), "shape": [8, 8, 8], "geometry": {}, "training": {}}
    fingerprint = write_package(str(root / "vae"), "autoencoder", build_autoencoder(config).state_dict(), document)
    splits = [split for split, count in PEOPLE.items() for _ in range(count)]
    labels = [i % 2 for i in range(len(splits))]
    mu, logvar = write(root / "real", labels, splits, autoencoder=fingerprint)
    synthetic = {"logvar": (LOGVAR[0],) * 2, "seed": 500, "autoencoder": fingerprint}
    write(root / "synthetic" / "latents", [0, 1] * 6, ["train"] * 12, shown=[0] * 12, **synthetic)
    return SimpleNamespace(root=root, mu=mu, logvar=logvar, train=np.array(splits) == "train", vae=fingerprint)


def arguments(planted, output, *more):
    given = ["--data", str(planted.root / "real"), "--synthetic", str(planted.root / "synthetic")]
    return ["latents", "--output", str(output), *given, "--autoencoder", str(planted.root / "vae"), *FAST, *more]


@pytest.fixture(scope="module")
def done(planted, ray_session, tmp_path_factory):
    """A finished job."""
    folder = tmp_path_factory.mktemp("latents") / "out"
    assert main(arguments(planted, folder)) == 0
    return SimpleNamespace(folder=folder, figures=json.loads((folder / "latents.json").read_text()))


def test_the_channels_are_those_of_the_training_split(planted, done):
    by_channel, noise = (
        values[planted.train].astype(np.float64).swapaxes(0, 1).reshape(2, -1)
        for values in (planted.mu, np.exp(planted.logvar))
    )
    variance = by_channel.var(axis=1) + noise.mean(axis=1)
    for number, row in enumerate(done.figures["channels"]["real"]):
        assert row["share of noise (%)"] == pytest.approx(100 * noise[number].mean() / variance[number], rel=1e-6)
        assert row["mean"] == pytest.approx(by_channel[number].mean(), rel=1e-6)
        assert row["sd"] == pytest.approx(variance[number] ** 0.5, rel=1e-6)
        assert row["min"] == pytest.approx(by_channel[number].min(), rel=1e-6)
        assert row["mean sigma"] == pytest.approx(np.sqrt(noise[number, 0]), rel=1e-6)
        assert row["scale factor"] == pytest.approx(1 / variance[number] ** 0.5, rel=1e-6)
    assert "mean sigma" not in done.figures["channels"]["synthetic"][0]
    verdict = {check["name"]: check["passed"] for check in done.figures["checks"]}
    assert verdict["training latents, standardised: mean"]
    assert verdict["training latents, standardised: sd"]


def test_samples_without_the_sign_of_their_class_are_far_from_its_people(done):
    found = {group["name"]: group for group in done.figures["groups"]}
    assert found["TLE from HC, training"]["separation"] > 2
    assert found["TLE, synthetic, from training"]["separation"] > 2
    for name in ("HC, held out, from training", "TLE, held out, from training", "HC, synthetic, from training"):
        assert found[name]["separation"] < 1.5
    assert found["TLE from HC, synthetic"]["separation"] < 1.5
    assert (found["TLE, synthetic, from training"]["n"], found["TLE, held out, from training"]["n"]) == (6, 4)


def test_the_page_shows_verdict_channels_maps_strips_and_what_is_left_out(done):
    page = (done.folder / "report.html").read_text()
    pictures = {path.stem for path in done.folder.glob("*.png")}
    assert pictures == {"pca", "explained", "channels", "correlation", "strip-0", "strip-1", "noise"}
    assert page.count("data:image/png;base64,") == 7
    assert "16 train, 4 val, 4 test, 12 synthetic; classes HC, TLE" in page
    assert "real: HC to TLE" in page
    assert "synthetic: HC to TLE" in page
    assert "There is no map by UMAP: umap is false." in page
    assert page.index("share of noise in the variance") < page.index("Channels: latents") < page.index("data:image")
    assert len(done.figures["decoded"]["psnr"]) == 3


def test_the_same_command_again_has_nothing_to_do_and_keeps_what_was_measured(planted, done, capsys):
    kept = {p: p.stat().st_mtime_ns for p in (done.folder / ".voxfleet").rglob("*.parquet")}
    assert len(kept) == 8  # two shards of two sets, measured and committed
    assert main(arguments(planted, done.folder)) == 0
    assert "is complete, nothing to do" in capsys.readouterr().err
    (done.folder / "latents.json").unlink()
    assert main(arguments(planted, done.folder)) == 0
    assert {p: p.stat().st_mtime_ns for p in (done.folder / ".voxfleet").rglob("*.parquet")} == kept
    assert json.loads((done.folder / "latents.json").read_text()) == done.figures


def test_imported_latents_without_a_width_or_an_autoencoder_are_shown_without_them(planted, ray_session, tmp_path):
    write(tmp_path / "real", [0, 1] * 4, ["train"] * 6 + ["val"] * 2, logvar=(LOGVAR[0],) * 2)
    none = ["--synthetic", "null", "--autoencoder", "null"]
    assert main(arguments(planted, tmp_path / "out", "--data", str(tmp_path / "real"), *none)) == 0
    figures = json.loads((tmp_path / "out" / "latents.json").read_text())
    left_out = [check["name"] for check in figures["checks"] if "no log-variance" in check["value"]]
    assert left_out == ["share of noise in the variance of a draw", "unused channels (noise above 90 %)"]
    assert figures["decoded"] is None
    assert "set autoencoder" in (tmp_path / "out" / "report.html").read_text()


# --- What is refused


def test_bad_input_is_one_line(planted, fails, tmp_path):
    out, real = tmp_path / "out", planted.root / "real"

    def line(*more):
        return fails(main, arguments(planted, out, *more))

    def changed(name, **values):
        folder = tmp_path / name
        shutil.copytree(planted.root / "synthetic" / "latents", folder)
        document = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**document, **values}))
        return str(folder)

    assert "holds no finished latents" in line("--data", str(tmp_path / "nothing"))
    assert "holds no finished latents" in line("--synthetic", str(tmp_path / "nothing"))
    other = line("--synthetic", changed("other", autoencoder="f" * 64))
    assert f"has autoencoder ffffffffffff, data {real} has {planted.vae[:12]}; give latents of one" in other
    assert "has class FCD; those of data" in line("--synthetic", changed("classes", classes=["HC", "FCD"]))
    write(tmp_path / "few", [0, 1, 0], ["train", "train", "val"], autoencoder=planted.vae)
    assert "has less than three latents in split train" in line("--data", str(tmp_path / "few"))
    vae = tmp_path / "vae"
    shutil.copytree(planted.root / "vae", vae)
    document = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**document, "fingerprint": "0" * 64}))
    assert "but " in (found := line("--autoencoder", str(vae)))
    assert "is 000000000000; give the autoencoder that made its latents" in found
    assert not out.exists()


def test_synthetic_latents_of_another_shape_are_refused(planted, fails, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SHAPE", (2, 4, 4, 6))
    write(tmp_path / "other", [0, 1], ["train"] * 2, autoencoder=planted.vae)
    line = fails(main, arguments(planted, tmp_path / "out", "--synthetic", str(tmp_path / "other")))
    assert "has shape (2, 4, 4, 6), data" in line


def test_keys_that_cannot_be_are_refused(planted, fails, tmp_path, monkeypatch):
    def line(*more):
        return fails(main, arguments(planted, tmp_path / "out", *more))

    assert "points is 1; it must be at least 2" in line("--points", "1")
    assert "volumes is 0; it must be at least 1" in line("--volumes", "0")
    assert "resources.workers is 2; one worker decodes" in line("--resources.workers", "2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "umap is true, but is not installed: pip install 'voxfleet[umap]'" in line("--umap", "true")


# --- The demo


@pytest.mark.slow
def test_the_demo_is_shown_with_samples_beside_and_recorded(workspace, tmp_path):
    more = ["--save.latents", "true", "--save.volumes", "false", "--campaign.samples", "2"]
    assert workspace.run("generate", "--output", str(tmp_path / "synthetic"), *more) == 0
    out = tmp_path / "out"
    assert workspace.run("latents", "--output", str(out), "--synthetic", str(tmp_path / "synthetic")) == 0
    figures = json.loads((out / "latents.json").read_text())
    manifest = read_manifest(str(workspace.demo / "latents"), "latents")
    assert figures["inputs"]["data"] == manifest.digest
    np.testing.assert_allclose([row["sd"] for row in figures["channels"]["real"]], manifest.std, rtol=1e-5)
    client = mlflow.MlflowClient(f"sqlite:///{workspace.demo}/mlflow.db")
    key = json.loads((out / ".voxfleet" / "job.json").read_text())["record"]
    (run,) = client.search_runs(
        [client.get_experiment_by_name("voxfleet").experiment_id], f"tags.`voxfleet.key` = '{key}'"
    )
    assert run.data.metrics["noise_share/real"] == figures["noise_share"]["real"]
    assert {"report.html", "latents.json", "pca.png"} <= {f.path for f in client.list_artifacts(run.info.run_id)}
