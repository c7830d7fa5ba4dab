"""The simulated cohort: reproducible, labelled on the right side, carrying the disease, and valid BIDS."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from deadlines import extend

from voxfleet import storage
from voxfleet.data import bids, cohort
from voxfleet.data.cohort import SimulatedSubject, SimulationConfig, Simulator

pytest.importorskip("nilearn")
COUNT = 14


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulationConfig(spacing_mm=6.0))


@pytest.fixture(scope="module")
def subjects(simulator: Simulator) -> list[SimulatedSubject]:
    return [simulator.simulate(index) for index in range(COUNT)]


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        storage.write_bytes(storage.join(str(folder), path), data)


def validate(folder: Path) -> None:
    validator = Path(sys.executable).parent / "bids-validator-deno"
    command = [str(validator), str(folder), "--ignoreWarnings", "--recursive"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=extend(60), check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_subject_depends_on_seed_and_index_alone(simulator, subjects, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = simulator.simulate(3)
    finally:
        torch.set_num_threads(before)
    assert again.participant == subjects[3].participant
    assert np.array_equal(again.image, subjects[3].image)
    assert np.array_equal(again.labels, subjects[3].labels)
    assert cohort.subject_files(again) == cohort.subject_files(subjects[3])


def test_subjects_differ(subjects):
    assert not np.array_equal(subjects[0].image, subjects[2].image)
    masks = [subject.image > 0 for subject in subjects[:6]]
    overlaps = [2 * (a & b).sum() / (a.sum() + b.sum()) for a in masks for b in masks if a is not b]
    assert min(overlaps) > 0.8
    assert max(overlaps) < 0.99


@pytest.mark.parametrize("share", [0.0, 0.29, 0.5, 0.57, 1.0])
def test_shares_are_exact_for_any_number(share):
    config = SimulationConfig(tle_share=share)
    groups = [cohort._group(config, index) for index in range(100)]
    assert sum(group == "TLE" for group, _ in groups) == round(100 * share)
    for n in range(1, 101):
        assert abs(sum(group == "TLE" for group, _ in groups[:n]) - n * share) < 1
    sides = [side for _, side in groups]
    assert abs(sides.count("left") - sides.count("right")) <= 1
    assert all((side == "n/a") == (group == "HC") for group, side in groups)


def test_disease_shrinks_one_hippocampus(subjects):
    ratios, healthy = [], []
    for subject in subjects:
        volumes, side = subject.volumes_mm3, subject.participant["side"]
        if side == "n/a":
            healthy.append(volumes["left"] / volumes["right"])
        else:
            ratios.append(volumes[side] / volumes["right" if side == "left" else "left"])
    assert 0.6 < np.mean(ratios) < 0.85
    assert 0.9 < np.mean(healthy) < 1.1


def test_disease_darkens_the_shrunken_hippocampus(subjects):
    def darkening(subject):
        means = {s: subject.image[subject.labels == v].mean() for s, v in cohort.LABELS.items()}
        side = subject.participant["side"]
        return means[side] / means["right" if side == "left" else "left"]

    assert np.mean([darkening(s) for s in subjects if s.participant["group"] == "TLE"]) < 0.97


def test_deformations_do_not_fold(subjects):
    assert min(subject.min_jacobian for subject in subjects) > 0.3


def test_labels_lie_in_their_half_of_the_head(subjects):
    for subject in subjects:
        for value, sign in ((cohort.LABELS["left"], -1), (cohort.LABELS["right"], 1)):
            voxels = np.argwhere(subject.labels == value)
            x = nib.affines.apply_affine(subject.affine, voxels)[:, 0]
            assert len(x) > 5
            assert (sign * x > 0).all()


def test_images_are_stripped_and_do_not_touch_the_border(subjects):
    for subject in subjects:
        assert subject.image.dtype == np.float32
        assert np.isfinite(subject.image).all()
        assert subject.image.min() == 0
        inner = np.zeros(subject.image.shape, dtype=bool)
        inner[1:-1, 1:-1, 1:-1] = True
        assert not subject.image[~inner].any()


def test_dataset_is_valid_bids_and_opens_in_place(simulator, subjects, tmp_path):
    four = subjects[:4]
    for subject in four:
        write(tmp_path, cohort.subject_files(subject))
    write(tmp_path, cohort.dataset_files(simulator.config, [subject.participant for subject in four]))
    validate(tmp_path)
    image = nib.load(tmp_path / "sub-0002/anat/sub-0002_T1w.nii.gz")
    assert np.allclose(image.affine, four[1].affine)
    assert np.allclose(image.get_fdata(), four[1].image, atol=four[1].image.max() / 32767)
    truth = "derivatives/simulation/sub-0002/anat/sub-0002_space-orig_desc-hippocampus_dseg.nii.gz"
    assert np.array_equal(np.asarray(nib.load(tmp_path / truth).dataobj), four[1].labels)
    assert "SIMULATED" in (tmp_path / "README.md").read_text()


def test_synthetic_derivative_is_valid_bids(subjects, tmp_path):
    """The form of what ``generate`` writes, with the shared pieces of ``bids``."""
    rows = [{"participant_id": "sub-synTLE0000123", "group": "TLE", "age": None}]
    name = "sub-synTLE0000123/anat/sub-synTLE0000123_desc-synth_T1w"
    files = cohort.subject_files(subjects[0])
    description = bids.dataset_description(
        "Synthetic", "derivative", description="sampled", source_datasets=[{"URL": "https://example.org/cohort"}]
    )
    write(
        tmp_path,
        {
            f"{name}.nii.gz": files["sub-0001/anat/sub-0001_T1w.nii.gz"],
            f"{name}.json": bids.json_bytes({"SkullStripped": True, "Synthetic": True}),
            "participants.tsv": bids.participants_tsv(rows),
            "participants.json": bids.json_bytes({"group": {"Description": "Class"}, "age": {"Description": "Age"}}),
            "dataset_description.json": description,
            "README.md": b"# Synthetic volumes\n",
        },
    )
    validate(tmp_path)
    assert json.loads(description)["GeneratedBy"][0]["Name"] == "voxfleet"


def test_participants_table_refuses_duplicates_and_other_columns():
    row = {"participant_id": "sub-01", "group": "HC"}
    assert bids.participants_tsv([{**row, "group": None}]) == b"participant_id\tgroup\nsub-01\tn/a\n"
    with pytest.raises(ValueError, match="sub-01"):
        bids.participants_tsv([row, row])
    with pytest.raises(ValueError, match="columns"):
        bids.participants_tsv([row, {"participant_id": "sub-02"}])


@pytest.mark.parametrize(
    ("key", "value"),
    [("spacing_mm", 0.5), ("spacing_mm", 9.0), ("tle_share", 1.1), ("tle_share", float("nan")), ("seed", -1)],
)
def test_bad_config_names_the_key_and_value(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}.*must be"):
        SimulationConfig(**{key: value})
