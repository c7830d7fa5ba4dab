"""The evaluate job: its gate, features that the user gives, and what cannot be compared."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from voxfleet.data import nifti
from voxfleet.data.label_maps import label_volumes
from voxfleet.data.sets import open_set
from voxfleet.data.shards import SPLITS, table_bytes
from voxfleet.engine import measures
from voxfleet.metrics.statistics import effect_size
from voxfleet.models.classifier import ClassifierConfig, build_classifier
from voxfleet.models.segmenter import SegmenterConfig, build_segmenter
from voxfleet.packages import architecture, write_package


class Means(torch.nn.Module):
    """A network for slices, with the interface of FID's Inception."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        quarters = torch.nn.functional.adaptive_avg_pool2d(x[:, :1], 2).flatten(1)
        return quarters if return_features else x


class MeanAbsolute(torch.nn.Module):
    """A network for pairs of slices, with the interface of LPIPS."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture(scope="module")
def networks(tmp_path_factory, workspace):
    """Networks for slices and pairs of slices, packages of a classifier and a segmenter with random weights."""
    folder = tmp_path_factory.mktemp("networks")
    torch.jit.save(torch.jit.script(Means()), folder / "slices.pt")
    torch.jit.save(torch.jit.script(MeanAbsolute()), folder / "pairs.pt")
    torch.manual_seed(0)
    config = ClassifierConfig(width=0.25, depth=0.1, num_classes=2, input_size=(16, 12, 10))
    document = {
        "architecture": architecture(config),
        "classes": ["HC", "TLE"],
        "shape": [16, 20, 16],
        "region": [[0, 16], [2, 14], [0, 10]],
        "geometry": {},
        "training": {},
    }
    write_package(str(folder / "classifier"), "classifier", build_classifier(config).state_dict(), document)
    write_segmenter(folder / "segmenter", seed=0)
    return folder


def write_segmenter(folder: Path, seed: int) -> None:
    """A package of random weights."""
    torch.manual_seed(seed)
    config = SegmenterConfig(channels=(4, 8))
    geometry = {"affine": np.diag([10.0, 10, 10, 1]).tolist(), "spacing_mm": [10.0] * 3, "orientation": "RAS"}
    document = {"architecture": architecture(config), "geometry": geometry}
    write_package(str(folder), "segmenter", build_segmenter(config).state_dict(), document)


def with_rows(folder: Path, change) -> Path:
    """The dataset with the rows of its manifest changed."""
    table = pq.read_table(folder / "manifest.parquet")
    (folder / "manifest.parquet").write_bytes(table_bytes(change(table)))
    return folder


def copied(workspace, tmp_path) -> Path:
    return Path(shutil.copytree(workspace.demo / "synthetic", tmp_path / "synthetic"))


def like_real_ones(workspace, folder: Path, splits: tuple[str, ...] = SPLITS) -> Path:
    """A dataset of noisy real volumes: the tiny model's show no brain."""
    real = open_set(str(workspace.demo / "volumes"))
    chosen = np.flatnonzero(np.isin(real.splits, splits))[::2]
    rng, rows = np.random.default_rng(0), []
    folder.mkdir()
    for row, volume, affine in zip(chosen, *real.read(chosen), strict=True):
        data = np.clip(volume + 0.02 * rng.standard_normal(volume.shape), 0, 1).astype(np.float32)
        (folder / f"{row}.nii.gz").write_bytes(nifti.encode(data, affine))
        name = real.classes[real.labels[row]]
        rows.append({"sample_id": f"syn-{row}", "class": name, "file": f"{row}.nii.gz", "sha256": f"{row:064d}"})
    (folder / "manifest.parquet").write_bytes(table_bytes(pa.Table.from_pylist(rows)))
    return folder


@pytest.mark.slow
def test_a_volume_that_is_not_finite_or_elsewhere_stops_the_release_and_the_rest_is_compared(
    workspace, networks, tmp_path, capsys
):
    synthetic, out = like_real_ones(workspace, tmp_path / "planted"), tmp_path / "report"
    first, second = (row["file"] for row in pq.read_table(synthetic / "manifest.parquet").to_pylist()[:2])
    image = nib.load(synthetic / first)
    nib.save(nib.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), synthetic / first)
    moved = nib.load(synthetic / second)
    shifted = moved.affine + np.array([[0, 0, 0, 3], *[[0] * 4] * 3])
    nib.save(nib.Nifti1Image(moved.get_fdata().astype(np.float32), shifted), synthetic / second)
    more = ["--features.inception", str(networks / "slices.pt"), "--features.slices", "2"]
    more += ["--features.lpips", str(networks / "pairs.pt")]
    more += ["--features.classifier", str(networks / "classifier"), "--release.enforce", "true", "--saliency", "2"]
    more += ["--hippocampi.segmenter", str(networks / "segmenter")]
    arguments = ["--synthetic", str(synthetic), "--output", str(out), "--page", str(out / "page.html"), *more]
    assert workspace.run("evaluate", *arguments) == 3
    assert "synthetic must not be released: volumes that are finite: 0.833 (wanted: all)" in capsys.readouterr().err
    found = json.loads((out / "figures.json").read_text())["sets"]["synthetic"]
    assert found["release"] == "fail"
    figures = found["figures"]
    assert not figures["finite"]["passed"]
    assert figures["place"]["found"]["value"] == pytest.approx(3, abs=0.01)
    assert not figures["place"]["passed"]
    for plane in ("sagittal", "coronal", "axial"):
        assert figures[f"kid/Inception/{plane}/all"]["found"]
    assert figures["kid/classifier/all"]["found"]
    assert figures["class/all"]["found"]["n"] == 5  # without the one that is not finite
    assert figures["class/all"]["floor"]["n"] == 2  # the real people of the test split
    assert figures["inception_score"]["found"]
    assert figures["lpips"]["found"]["n"] == 5
    places = {(one["plane"], one["mm"]) for one in found["positions"]}
    assert len(places) == 6  # two slices of three planes
    assert all(abs(mm) < 100 for _, mm in places)
    page = (out / "page.html").read_text()
    sections = (
        "Distances",
        "By slice position",
        "Anatomy",
        "Nearest training volumes",
        "Real",
        "Nearest pairs: synthetic",
    )
    places = [page.index(f"<h2>{section}</h2>") for section in sections]
    assert places == sorted(places)
    assert figures["anatomy/hippocampus_asymmetry"]["found"]
    assert "give two or more finite values" in figures["effect/hippocampi_ml"]["reason"]  # one HC is left
    for way in ("grad-cam", "smooth_gradients"):
        inside = figures[f"saliency/{way}/TLE/hippocampi"]
        assert inside["found"]["n"] == inside["floor"]["n"] == 2
    assert "The hippocampi are outlined" in page
    stamp = json.loads((synthetic / "release.json").read_text())
    assert stamp["release"] == "fail"
    assert stamp["reasons"][0].startswith("volumes that are finite")
    capsys.readouterr()
    assert workspace.run("evaluate", *arguments) == 3  # complete, and still no
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("may_be_mirrored", [pytest.param(False, marks=pytest.mark.matrix), True])
def test_a_mirrored_copy_is_one_where_training_may_have_seen_mirror_images(
    workspace, symmetric, tmp_path, may_be_mirrored
):
    synthetic = like_real_ones(workspace, tmp_path / "planted", ("val", "test"))
    real = open_set(str(symmetric))
    file = pq.read_table(synthetic / "manifest.parquet")["file"][0].as_py()
    (copied,), (affine,) = real.mirror_images.read(np.flatnonzero(real.splits == "train")[:1])
    (synthetic / file).write_bytes(nifti.encode(copied, affine))
    volumes = symmetric if may_be_mirrored else workspace.demo / "volumes"
    more = ["--volumes", str(volumes), "--synthetic", str(synthetic), "--output", str(tmp_path / "report")]
    assert workspace.run("evaluate", *more, "--page", str(tmp_path / "page.html")) == 0
    figures = json.loads((tmp_path / "report" / "figures.json").read_text())["sets"]["synthetic"]["figures"]
    assert figures["copies/voxels"]["found"]["value"] == (pytest.approx(1 / 3) if may_be_mirrored else 0)


@pytest.mark.matrix
def test_pieces_are_measured_again_only_by_another_network(workspace, networks, tmp_path):
    out, package = tmp_path / "report", Path(shutil.copytree(networks / "segmenter", tmp_path / "segmenter"))
    synthetic = like_real_ones(workspace, tmp_path / "planted")
    arguments = ["--synthetic", str(synthetic), "--output", str(out), "--page", str(out / "page.html")]
    arguments += ["--hippocampi.segmenter", str(package)]
    assert workspace.run("evaluate", *arguments) == 0
    first = json.loads((out / "figures.json").read_text())
    pieces = sorted((out / ".voxfleet" / "measures").iterdir())
    before = [path.stat().st_mtime_ns for path in pieces]
    (out / "figures.json").unlink()
    assert workspace.run("evaluate", *arguments) == 0
    assert [path.stat().st_mtime_ns for path in pieces] == before
    assert json.loads((out / "figures.json").read_text()) == first
    write_segmenter(package, seed=1)
    assert workspace.run("evaluate", *arguments) == 0
    ours = (json.loads((out / "figures.json").read_text()), first)
    one, other = (found["sets"]["synthetic"]["figures"]["effect/hippocampi_ml"]["found"] for found in ours)
    assert one["value"] != other["value"]


@pytest.mark.matrix
def test_hippocampi_are_measured_by_maps_that_are_given(workspace, tmp_path):
    synthetic, out = like_real_ones(workspace, tmp_path / "planted"), tmp_path / "report"
    truth = workspace.demo / "cohort" / "derivatives" / "simulation"
    real = open_set(str(workspace.demo / "volumes"))
    lines = ["subject_id\tpath"]
    for row in pq.read_table(synthetic / "manifest.parquet")["sample_id"].to_pylist():
        subject = real.names[int(row.removeprefix("syn-"))]
        copy = shutil.copy(next((truth / subject / "anat").glob("*_dseg.nii.gz")), tmp_path / f"{row}.nii.gz")
        lines.append(f"{row}\t{copy}")
    (tmp_path / "maps.tsv").write_text("\n".join(lines))
    maps = f"{{real: {truth}, synthetic: {tmp_path / 'maps.tsv'}}}"
    arguments = ["--synthetic", str(synthetic), "--output", str(out), "--page", str(out / "page.html")]
    assert workspace.run("evaluate", *arguments, "--hippocampi.maps", maps) == 0
    figures = json.loads((out / "figures.json").read_text())["sets"]["synthetic"]["figures"]
    volumes = [label_volumes(nifti.read(str(path)), (1, 2)) for path in sorted(truth.glob("*/anat/*_dseg.nii.gz"))]
    smaller = np.min(volumes, axis=1)
    labels = np.array([real.labels[list(real.names).index(f"sub-{number:04d}")] for number in range(1, 13)])
    effect = figures["effect/hippocampus_smaller_ml"]
    assert effect["floor"]["value"] == pytest.approx(effect_size(smaller[labels == 1], smaller[labels == 0]).value)
    assert (effect["found"]["n"], effect["floor"]["n"]) == (6, 12)
    assert figures["anatomy/hippocampi_ml"]["found"]
    changed = nib.load(copy)
    Path(copy).write_bytes(nifti.encode(np.zeros(changed.shape, np.uint8), changed.affine))
    assert workspace.run("evaluate", *arguments, "--hippocampi.maps", maps) == 0  # is compared anew
    again = json.loads((out / "figures.json").read_text())["sets"]["synthetic"]["figures"]
    assert again["anatomy/hippocampi_ml"]["found"] != figures["anatomy/hippocampi_ml"]["found"]


@pytest.mark.matrix
def test_a_set_that_grew_may_be_compared_by_fewer_slices(workspace, networks, tmp_path, monkeypatch):
    synthetic, out = like_real_ones(workspace, tmp_path / "planted"), tmp_path / "report"
    every = (synthetic / "manifest.parquet").read_bytes()
    monkeypatch.setattr(measures, "_SLICES", 3 * (12 + 4) * 2)  # two a plane, and one of more volumes
    arguments = ["--synthetic", str(synthetic), "--output", str(out), "--page", str(out / "page.html")]
    arguments += ["--features.slices", "null", "--features.inception", str(networks / "slices.pt")]
    with_rows(synthetic, lambda table: table.slice(0, 4))
    for n in (4, 6):
        assert workspace.run("evaluate", *arguments) == 0
        figures = json.loads((out / "figures.json").read_text())["sets"]["synthetic"]["figures"]
        assert figures["kid/Inception/axial/all"]["found"]["n"] == n
        (synthetic / "manifest.parquet").write_bytes(every)


def test_sets_that_cannot_be_compared(fails, workspace, networks, tmp_path):
    def line(*more):
        return fails(workspace.run, "evaluate", "--output", str(tmp_path / "report"), *more)

    assert "holds no finished set of volumes" in line("--synthetic", str(tmp_path / "nothing"))
    assert "are no volume shards" in line("--volumes", str(workspace.demo / "synthetic"))
    synthetic = str(with_rows(copied(workspace, tmp_path), lambda table: table.slice(0, 0)))
    assert "lists no images" in line("--synthetic", synthetic)
    for name in ("real", "mirrored"):
        assert f"a synthetic set is named {name}" in line("--synthetic", f"{{{name}: {synthetic}}}")
    assert "hippocampi.maps names real; it must name real, synthetic" in line("--hippocampi.maps", "{real: maps}")
    assert "features.slices is 0" in line("--features.slices", "0")
    assert "release.alpha is 2" in line("--release.alpha", "2")
    assert not (tmp_path / "report").exists()
    text = tmp_path / "slices.pt"
    text.write_text("no network")
    assert f"features.inception {text}: it is no TorchScript file" in line("--features.inception", str(text))


def test_a_network_for_pairs_of_slices_is_tried_before_anything_is_written(fails, workspace, networks, tmp_path):
    def line(network):
        return fails(workspace.run, "evaluate", "--output", str(tmp_path / "report"), "--features.lpips", str(network))

    assert "nothing.pt" in line(tmp_path / "nothing.pt")
    network = networks / "slices.pt"
    assert f"features.lpips {network}: it does not take two batches of slices (2, 1, 20, 16)" in line(network)
    assert not (tmp_path / "report").exists()


def test_a_class_that_the_real_volumes_lack_is_refused(fails, workspace, tmp_path):
    def renamed(table):
        place = table.schema.get_field_index("class")
        return table.set_column(place, "class", [["FCD"] * len(table)])

    synthetic = with_rows(copied(workspace, tmp_path), renamed)
    line = fails(workspace.run, "evaluate", "--synthetic", str(synthetic), "--output", str(tmp_path / "report"))
    assert "has class FCD; the real ones are HC, TLE" in line


def test_volumes_of_another_grid_are_refused(fails, workspace, tmp_path):
    synthetic = copied(workspace, tmp_path)
    file = pq.read_table(synthetic / "manifest.parquet")["file"][0].as_py()
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), synthetic / file)
    line = fails(workspace.run, "evaluate", "--synthetic", str(synthetic), "--output", str(tmp_path / "report"))
    assert "has shape (8, 8, 8), the real volumes (16, 20, 16); compare sets of one grid" in line
