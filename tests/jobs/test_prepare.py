"""The prepare job: duplicates across subjects, sessions and runs, brain masks."""

import json
import shutil

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest

from voxfleet import storage
from voxfleet.cli import main
from voxfleet.data.background import PADDING
from voxfleet.data.orientation import UNITS_CONVERTED
from voxfleet.data.shards import read_manifest, read_shard
from voxfleet.data.sources import SEVERAL, SourceConfig, SplitConfig, list_scans, split_subjects

TINY = ["--preprocess.spacing_mm", "[10,10,10]", "--preprocess.shape", "[16,20,16]", "--preprocess.center", "world"]


@pytest.fixture
def cohort(workspace, tmp_path):
    """A copy of the simulated cohort that a test may change."""
    return shutil.copytree(workspace.demo / "cohort", tmp_path / "cohort")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def prepare(cohort, out, *more):
    return main(["prepare", "--output", str(out), "--source.bids", str(cohort), *TINY, *more])


def image_of(cohort, subject):
    return cohort / subject / "anat" / f"{subject}_T1w.nii.gz"


def pair(cohort, *, across: bool) -> tuple[str, str]:
    """The first two subjects of different classes that are in different splits, or both train on."""
    scans = list_scans(SourceConfig(bids=str(cohort))).scans
    splits = split_subjects(scans, SplitConfig(), ("HC", "TLE"))
    wanted = {"train", "test"} if across else {"train"}
    return next(
        (a.subject_id, b.subject_id)
        for a in scans
        for b in scans
        if a.label < b.label and {splits[a.subject_id], splits[b.subject_id]} == wanted
    )


def save_again(source, target):
    """The same scan, resampled by a third of a voxel and brighter."""
    image = nib.load(source)
    affine = image.affine.copy()
    affine[:3, 3] += 1.0
    data = nib.processing.resample_from_to(image, (image.shape, affine), order=1).get_fdata()
    nib.save(nib.Nifti1Image((1.7 * data).astype(np.float32), affine), target)


def rows(out) -> list[dict]:
    manifest = read_manifest(str(out), "volumes")
    return [row for uri in manifest.files(str(out)) for row in read_shard(uri).drop_columns(["volume"]).to_pylist()]


def test_a_scan_under_two_names_in_two_splits_is_refused_until_it_is_allowed(cohort, out, capsys):
    a, b = pair(cohort, across=True)
    save_again(image_of(cohort, a), image_of(cohort, b))
    assert prepare(cohort, out) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("voxfleet: error: ")]
    assert all(str(part) in line for part in (image_of(cohort, a), image_of(cohort, b), "audit.allow_across_splits"))
    assert not (out / "manifest.json").exists()
    assert prepare(cohort, out, "--audit.allow_across_splits", "true") == 0  # the same folder goes on
    (found,) = read_manifest(str(out), "volumes").duplicates
    assert (found["kind"], found["subjects"]) == ("near", [a, b])
    assert f"the same image under two subject ids: 1 pairs, the first: {a} (" in capsys.readouterr().err


def test_an_exact_copy_within_a_split_is_said_and_recorded(cohort, out, capsys):
    a, b = pair(cohort, across=False)
    shutil.copy(image_of(cohort, a), image_of(cohort, b))
    assert prepare(cohort, out, "--audit.near", "null") == 0
    assert "exact copy" in capsys.readouterr().err
    (found,) = json.loads((out / "manifest.json").read_text())["duplicates"]
    assert found == {
        "kind": "exact",
        "subjects": [a, b],
        "splits": ["train", "train"],
        "sources": [str(image_of(cohort, a)), str(image_of(cohort, b))],
        "correlation": 1.0,
    }


def test_simulated_people_are_nobodys_duplicates_and_the_geometry_says_what_may_be_mirrored(workspace):
    manifest = read_manifest(str(workspace.demo / "volumes"), "volumes")
    assert manifest.duplicates == []
    assert manifest.geometry["mirror_axis"] is None


def test_all_sessions_and_runs_are_taken_and_stay_in_the_split_of_their_subject(cohort, out):
    first = image_of(cohort, "sub-0001")
    names = ["ses-1/anat/sub-0001_ses-1_run-1_T1w", "ses-1/anat/sub-0001_ses-1_run-2_T1w"]
    again = [cohort / "sub-0001" / f"{name}.nii.gz" for name in names]
    again[0].parent.mkdir(parents=True)
    for path in again:
        save_again(first, path)
    assert prepare(cohort, out, "--source.images", "all", "--source.mirrored", "true") == 0
    manifest, table = read_manifest(str(out), "volumes"), rows(out)
    assert len(table) == 14 == sum(sum(by_class.values()) for by_class in manifest.counts.values())
    assert len({row["source"] for row in table}) == 14
    mine = [row for row in table if row["subject_id"] == "sub-0001"]
    assert {row["source"] for row in mine} == {str(path) for path in (first, *again)}
    assert len({row["split"] for row in mine}) == 1
    assert manifest.duplicates == []  # three images of one person
    assert manifest.geometry["mirror_axis"] == 0


def test_masks_cut_each_image_and_one_that_is_missing_is_reported(cohort, out, tmp_path, capsys):
    masks = tmp_path / "masks"
    for path in sorted(cohort.glob("sub-*/anat/*_T1w.nii.gz"))[1:]:
        image = nib.load(path)
        left = np.arange(image.shape[0])[:, None, None] < image.shape[0] // 2
        name = path.relative_to(cohort).as_posix().replace("_T1w", "_desc-brain_mask")
        storage.write_bytes(str(masks / name), b"")  # its folder
        nib.save(nib.Nifti1Image((left * np.ones(image.shape)).astype(np.uint8), image.affine), masks / name)
    strip = ["--source.masks", str(masks), "--preprocess.skull_strip", "masks", "--max_skipped", "0.1"]
    split = ["--split.train", "0.5", "--split.val", "0.25", "--split.test", "0.25"]
    assert prepare(cohort, out, *strip, *split) == 0
    assert "sub-0001_desc-brain_mask.nii.gz does not exist" in capsys.readouterr().err
    manifest = read_manifest(str(out), "volumes")
    assert [skipped["subject_id"] for skipped in manifest.skipped] == ["sub-0001"]
    assert manifest.limits["symmetry"][1] < 0.5  # half heads


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--source.masks", "somewhere"], "set preprocess.skull_strip to masks"),
        (["--preprocess.skull_strip", "masks"], "source.masks"),
    ],
)
def test_masks_and_skull_strip_go_together(cohort, out, capsys, more, named):
    assert prepare(cohort, out, *more) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_what_was_chosen_left_out_and_mended_is_told_in_a_line_a_kind_and_listed(cohort, out, capsys):
    for path in sorted(cohort.rglob("*_T1w.*")):
        path.rename(path.with_name(path.name.replace("_T1w", "_FLAIR")))
    images = sorted(cohort.glob("sub-*/anat/*_FLAIR.nii.gz"))
    shutil.copy(images[0], images[0].with_name(images[0].name.replace("_FLAIR", "_acq-fast_FLAIR")))
    images[1].unlink()
    images[1].symlink_to("../../.git/annex/objects/Xx/9z/MD5E-s9--00.nii.gz")
    padded = nib.load(images[2])
    data = padded.get_fdata(dtype=np.float32)
    data[:2] = -1000
    nib.save(nib.Nifti1Image(data, padded.affine), images[2])
    micrometres = nib.load(images[3])
    affine = np.diag([1000.0, 1000, 1000, 1]) @ micrometres.affine
    micrometres = nib.Nifti1Image(micrometres.get_fdata(dtype=np.float32), affine)
    micrometres.header.set_xyzt_units("micron")
    nib.save(micrometres, images[3])
    split = ["--split.train", "0.5", "--split.val", "0.25", "--split.test", "0.25"]
    assert prepare(cohort, out, "--source.suffix", "FLAIR", "--max_skipped", "0.1", *split) == 0
    manifest = read_manifest(str(out), "volumes")
    assert manifest.suffix == "FLAIR"
    first, second = images[0].name, images[0].name.replace("_FLAIR", "_acq-fast_FLAIR")
    assert manifest.notes == {
        SEVERAL: [f"{first} chosen before {second}"],
        PADDING: [str(images[2])],
        UNITS_CONVERTED: [str(images[3])],
    }
    (skipped,) = manifest.skipped
    assert f"run: datalad get {images[1]}" in skipped["reason"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prepare: ")]
    for kind, entry in ((SEVERAL, first), (PADDING, images[2]), (UNITS_CONVERTED, images[3])):
        assert sum(line.startswith(f"prepare: {kind}: 1, the first: {entry}") for line in lines) == 1
    assert len(lines) == 5  # one of what was left out, and the summary
