"""The classify job on planted volumes: what is found, resuming, bad input."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from voxfleet.cli import main
from voxfleet.data import nifti
from voxfleet.data.geometry import geometry_of
from voxfleet.data.shards import Manifest, count_rows, table_bytes, tensor_table, write_manifest
from voxfleet.packages import load_classifier

SHAPE, AFFINE, CLASSES = (8, 10, 9), np.diag([2.0, 2.0, 2.0, 1.0]), ("HC", "TLE")
PEOPLE = {"train": 12, "val": 4, "test": 8}
FAST = [
    *["--model.width", "0.25", "--model.depth", "0.1", "--folds", "2", "--seeds", "1", "--mix", "[]"],
    *["--region_mm", "[[-1,15],[-1,15],[-1,15]]"],
    *["--training.epochs", "20", "--training.batch_size", "4", "--training.lr", "0.003"],
]


def planted(label, seed):
    """Noise, with a bright corner in class 1."""
    volume = np.random.default_rng(seed).random(SHAPE, dtype=np.float32) * 0.5
    volume[:4, :4, :4] += 0.5 * label
    return volume


def write_real(folder):
    splits = [split for split, count in PEOPLE.items() for _ in range(count)]
    labels = [i % 2 for i in range(len(splits))]
    subjects = [f"sub-{i:02d}" for i in range(len(splits))]
    columns = {"subject_id": subjects, "label": labels, "split": splits, "source": subjects}
    table = tensor_table(columns, {"volume": np.stack([planted(label, i) for i, label in enumerate(labels)])})
    folder.mkdir()
    (folder / "part-00000.parquet").write_bytes(table_bytes(table))
    rows = table.select(["split", "label"]).to_pylist()
    manifest = Manifest(
        kind="volumes",
        shape=SHAPE,
        classes=CLASSES,
        counts=count_rows(rows, CLASSES, str(folder)),
        mean=[0.3],
        std=[0.2],
        geometry=geometry_of(AFFINE),
        limits={},
        shards=[{"file": "part-00000.parquet", "rows": len(rows), "sha256": "0"}],
    )
    write_manifest(str(folder), manifest)


def write_synthetic(folder, names=CLASSES, shape=SHAPE, affine=AFFINE, count=16):
    """Half of the volumes are asked for as each of ``names``, and look like the other class."""
    folder.mkdir()
    rows = []
    for i in range(count):
        volume = planted(1 - i % 2, 1000 + i)[tuple(slice(edge) for edge in shape)]
        (folder / f"{i}.nii.gz").write_bytes(nifti.encode(volume, affine))
        rows.append({"sample_id": f"syn-{i}", "class": names[i % 2], "file": f"{i}.nii.gz", "sha256": f"{i:064d}"})
    table = pa.Table.from_pylist(rows) if rows else pa.table({"class": pa.array([], pa.string())})
    (folder / "manifest.parquet").write_bytes(table_bytes(table))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Real volumes with a planted signal, and synthetic ones in which it means the other class."""
    root = tmp_path_factory.mktemp("planted")
    write_real(root / "real")
    write_synthetic(root / "synthetic")
    return root


def classify(sets, output, *more, synthetic="synthetic"):
    given = ["--real", str(sets / "real"), "--synthetic", str(sets / synthetic)]
    return main(["classify", "--output", str(output), *given, *FAST, *more])


@pytest.fixture(scope="module")
def done(sets, ray_session, tmp_path_factory):
    """A finished comparison."""
    output = tmp_path_factory.mktemp("classify") / "out"
    assert classify(sets, output) == 0
    figures = json.loads((output / "figures.json").read_text())
    return SimpleNamespace(folder=output, figures=figures, rows=pq.read_table(output / "predictions.parquet"))


def test_a_planted_signal_is_found_and_synthetic_volumes_teach_the_opposite(done):
    for part, people in (("test", 8), ("fold", 16)):
        real, synthetic = done.figures[part]["real"], done.figures[part]["synthetic"]
        assert real["auc"]["n"] == people
        assert real["auc"]["value"] >= 0.9
        assert real["accuracy"]["value"] >= 0.8
        assert "auc_less_real" not in real
        difference = synthetic["auc"]["value"] - real["auc"]["value"]
        assert synthetic["auc_less_real"]["value"] == pytest.approx(difference)
        assert synthetic["auc"]["value"] <= 0.1
    assert done.figures["package"]["auc"]["value"] >= 0.9


def test_samples_that_look_like_the_other_class_are_not_consistent_with_theirs(done):
    found = done.figures["consistency"]
    assert max(found[name]["value"] for name in ("all", *CLASSES)) <= 0.25
    assert (found["all"]["n"], found["HC"]["n"]) == (16, 8)


def test_every_person_is_predicted_by_those_that_never_saw_them(done):
    rows = done.rows.to_pylist()
    kinds = {(row["regime"], row["part"]) for row in rows}
    others = {("real", "synthetic"), ("package", "test"), ("package", "synthetic")}
    assert kinds == {(regime, part) for regime in ("real", "synthetic") for part in ("test", "fold")} | others
    for regime in ("real", "synthetic"):
        mine = [row for row in rows if row["regime"] == regime]
        assert sorted(row["subject_id"] for row in mine if row["part"] == "fold") == [f"sub-{i:02d}" for i in range(16)]
        assert len([row for row in mine if row["part"] == "test"]) == 2 * PEOPLE["test"]
    assert all(row["p_HC"] + row["p_TLE"] == pytest.approx(1) for row in rows)


def test_the_package_is_the_classifier_that_was_tested(done, sets):
    bundle = load_classifier(str(done.folder / "package"))
    assert (bundle.classes, bundle.shape) == (CLASSES, SHAPE)
    assert bundle.region == (slice(0, 8),) * 3
    assert bundle.geometry["affine"] == AFFINE.tolist()
    rows = [row for row in done.rows.to_pylist() if (row["regime"], row["part"]) == ("package", "test")]
    numbers = [int(row["subject_id"].removeprefix("sub-")) for row in rows]
    volumes = torch.from_numpy(np.stack([planted(number % 2, number) for number in numbers]))[:, None]
    predicted = bundle.predict(volumes)
    np.testing.assert_allclose(predicted[:, 1], [row["p_TLE"] for row in rows], atol=0.01)  # volumes in half precision
    with torch.inference_mode():
        torch.testing.assert_close(bundle.model.head(bundle.features(volumes)).softmax(dim=1), predicted)
    with pytest.raises(ValueError, match=r"must be \(B, 1, 8, 10, 9\)"):
        bundle.predict(volumes[:, :, :4])
    elsewhere = volumes.clone()
    elsewhere[..., 8:] = 0
    torch.testing.assert_close(bundle.predict(elsewhere), predicted)


def test_the_page_shows_every_regime_and_what_the_test_is(done):
    page = (done.folder / "report.html").read_text()
    for words in ("real only", "synthetic only", "Test split: 8 people", "Held-out folds: 16 people", "p (DeLong)"):
        assert words in page
    assert page.count("data:image/png;base64,") == 1
    assert "generative model may have seen" in page


@pytest.mark.slow
def test_a_lost_unit_is_the_only_one_that_is_done_again(done, sets, tmp_path, capsys):
    output = shutil.copytree(done.folder, tmp_path / "out")
    ledger = output / ".voxfleet" / "ledger"
    lost = ledger / "real_fold-1_seed-0.parquet"
    before = {path.name: path.read_bytes() for path in ledger.glob("*.parquet")}
    assert len(before) == 5
    probabilities = pq.read_table(lost)["probabilities"].to_pylist()
    lost.unlink()
    (output / "figures.json").unlink()
    marked = {path: path.stat().st_mtime_ns for path in ledger.glob("*.parquet")}
    assert classify(sets, output) == 0
    assert {path: path.stat().st_mtime_ns for path in marked} == marked
    assert pq.read_table(lost)["probabilities"].to_pylist() == probabilities
    assert json.loads((output / "figures.json").read_text()) == done.figures
    assert classify(sets, output) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--folds", "9"], "class HC has 8 subjects for 9 folds"),
        (["--mix", "[400]"], "real + 400 % needs 12 synthetic volumes of class HC, there are 8"),
        (["--positive", "AD"], "positive is 'AD'; the classes of"),
        (["--training.augment.mirror", "true"], "does not say that a mirrored head is one of the same class"),
        (["--region_mm", "[[20,30],[0,9],[0,9]]"], "no voxel of the volumes lies in it; they reach [[-1, 15]"),
        (["--region_mm", "[[0,9],[0,9],[9,0]]"], "region_mm goes from 9.0 to 0.0"),
        (["--mix", "[50,50]"], "mix is [50.0, 50.0]"),
        (["--model.name", "vgg"], "name is 'vgg'; it must be one of efficientnetv2-s"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_begins(sets, tmp_path, fails, more, words):
    assert words in fails(classify, sets, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"names": ("HC", "AD")}, "has volumes of class AD, but the classes of the real ones are HC, TLE"),
        ({"names": ("HC", "HC")}, "has no volume of class TLE"),
        ({"count": 0}, "lists no images"),
        ({"shape": (8, 8, 4)}, "has shape (8, 8, 4), the real volumes (8, 10, 9)"),
        ({"affine": np.diag([2.0, 2.0, 3.0, 1.0])}, "lies elsewhere than the real volumes"),
    ],
    ids=["unknown", "missing", "empty", "shape", "affine"],
)
def test_synthetic_sets_that_do_not_fit_are_said(sets, ray_session, tmp_path, fails, made, words):
    folder = write_synthetic(tmp_path / "synthetic", **made)
    assert words in fails(classify, sets, tmp_path / "out", "--synthetic", str(folder))


@pytest.mark.slow
def test_the_demos_configuration_runs_on_what_generate_made(workspace):
    assert workspace.run("classify") == 0
    figures = json.loads((workspace.demo / "classify" / "figures.json").read_text())
    assert set(figures["fold"]) == {"real", "synthetic", "real-50"}
