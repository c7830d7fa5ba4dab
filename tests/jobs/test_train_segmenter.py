"""The train-segmenter job."""

import json
import shutil

import pytest

from voxfleet.packages import load_segmenter


@pytest.mark.slow
def test_a_segmenter_is_trained_on_label_maps(fails, workspace, tmp_path, capsys):
    truth = workspace.demo / "cohort" / "derivatives" / "simulation"
    maps = shutil.copytree(truth, tmp_path / "maps")
    assert workspace.run("train-segmenter", "--labels", str(maps)) == 0
    folder = workspace.demo / "segmenter"
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["n"] == 2  # the test split
    assert figures["true_ml"] == pytest.approx(3.5, abs=1)  # of one simulated hippocampus
    assert len(json.loads((folder / "history.json").read_text())) == 2
    assert (folder / "segmentation.png").read_bytes().startswith(b"\x89PNG")
    assert load_segmenter(str(folder / "package")).spacing_mm == (10, 10, 10)
    capsys.readouterr()
    assert workspace.run("train-segmenter", "--labels", str(maps)) == 0
    assert "nothing to do" in capsys.readouterr().err
    shutil.copy(*sorted(maps.glob("*/anat/*_dseg.nii.gz"))[:2])
    assert "the content of labels" in fails(workspace.run, "train-segmenter", "--labels", str(maps))

    def line(*more):
        return fails(workspace.run, "train-segmenter", "--output", str(tmp_path / "out"), *more)

    assert "where label maps should be, does not exist" in line("--labels", str(tmp_path / "nowhere"))
    assert "has no label 7 within the volume; set label_values" in line("--label_values.left", "7")
    assert "left and right are both 2" in line("--label_values.left", "2")
    some = tmp_path / "some"
    for name in ("sub-0001", "sub-0002"):
        shutil.copytree(truth / name, some / name)
    assert "subjects of split" in line("--labels", str(some), "--output", str(tmp_path / "other"))
