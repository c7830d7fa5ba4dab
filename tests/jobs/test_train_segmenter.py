"""The train-segmenter job, and evaluate by label maps that the user gives."""

import json
import shutil

import pytest

from voxfleet.packages import load_segmenter


def test_a_segmenter_is_trained_and_hippocampi_are_measured_by_maps(fails, workspace, tmp_path, capsys):
    assert workspace.run("train-segmenter") == 0
    folder = workspace.demo / "segmenter"
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["n"] == 4  # the test split
    assert figures["true_ml"] == pytest.approx(3.8, abs=0.6)  # of one simulated hippocampus
    assert len(json.loads((folder / "history.json").read_text())) == 2
    assert (folder / "segmentation.png").read_bytes().startswith(b"\x89PNG")
    assert load_segmenter(str(folder / "package")).spacing_mm == (10, 10, 10)
    capsys.readouterr()
    assert workspace.run("train-segmenter") == 0
    assert "nothing to do" in capsys.readouterr().err

    def line(*more):
        return fails(workspace.run, "train-segmenter", "--output", str(tmp_path / "out"), *more)

    assert "where label maps should be, does not exist" in line("--labels", str(tmp_path / "nowhere"))
    assert "has no label 7 within the volume; set values" in line("--values.left", "7")
    assert "left and right are both 2" in line("--values.left", "2")
    some = tmp_path / "some"
    truth = workspace.demo / "cohort" / "derivatives" / "simulation"
    for name in ("sub-0001", "sub-0002"):
        shutil.copytree(truth / name, some / name)
    assert "subjects of split" in line("--labels", str(some))


def test_maps_of_the_user_are_measured(workspace, tmp_path):
    truth = workspace.demo / "cohort" / "derivatives" / "simulation"
    out = tmp_path / "report"
    table = tmp_path / "synthetic.tsv"
    names = [path.name for path in sorted((workspace.demo / "synthetic").glob("sub-*"))]
    found = sorted(truth.glob("sub-*/anat/*_dseg.nii.gz"))[: len(names)]
    ids = [f"syn-{name[7:-7]}-{name[-7:]}" for name in names]
    table.write_text("subject_id\tpath\n" + "".join(f"{i}\t{path}\n" for i, path in zip(ids, found, strict=True)))
    maps = f"{{real: {truth}, synthetic: {table}}}"
    arguments = ["--output", str(out), "--page", str(out / "page.html"), "--hippocampi.maps", maps]
    assert workspace.run("evaluate", *arguments) == 0
    figures = json.loads((out / "figures.json").read_text())["sets"]["synthetic"]["figures"]
    real = figures["effect/hippocampus_asymmetry"]["floor"]
    assert real["value"] > 1
    assert real["n"] == 12
