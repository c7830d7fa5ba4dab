"""Label maps: found by subject, and put on another grid without loss of volume."""

import nibabel as nib
import numpy as np
import pytest

from voxfleet.data import nifti
from voxfleet.data.label_maps import filled, find_label_maps, label_volumes
from voxfleet.errors import UserError

AFFINE = np.array([[1.0, 0, 0, -20], [0, 1, 0, -30], [0, 0, 1, -10], [0, 0, 0, 1]])


def cubes():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[5:12, 10:20, 10:20], labels[25:30, 10:20, 10:20] = 17, 53  # 700 and 500 mm^3
    return labels


def test_volumes_are_kept_on_a_coarser_grid_that_is_shifted():
    image = nib.Nifti1Image(cubes(), AFFINE)
    mirror = AFFINE @ np.diag([-1, 1, 1, 1])
    mirror[0, 3] = AFFINE[0, 3] + 39
    flipped = nib.Nifti1Image(cubes()[::-1], mirror)  # the same head, stored from right to left
    grid = np.diag([3.0, 3, 3, 1])
    grid[:3, 3] = -22.3, -31.1, -12.7
    for one in (image, flipped):
        shares = filled(one, (17, 53), grid, (18, 18, 18))
        assert shares.shape == (2, 18, 18, 18)
        assert shares.max() <= 1 + 1e-6
        np.testing.assert_allclose(shares.sum(axis=(1, 2, 3)) * 27, [700, 500], rtol=0.02)
    centre = [grid[:3, :3] @ np.array(np.nonzero(share)).mean(axis=1) + grid[:3, 3] for share in shares]
    np.testing.assert_allclose(centre, [[-12, -15.5, 4.5], [7, -15.5, 4.5]], atol=1)


def test_a_voxel_that_is_inside_is_full():
    grid = np.diag([2.0, 2, 2, 1])
    grid[:3, 3] = AFFINE[:3, 3] + 0.5
    share = filled(nib.Nifti1Image(cubes(), AFFINE), (17,), grid, (20, 20, 20))[0]
    np.testing.assert_allclose(share[3:5, 6:9, 6:9], 1, atol=1e-6)
    assert share[10:].max() == 0


def test_volumes_of_labels():
    image = nib.Nifti1Image(cubes(), AFFINE @ np.diag([2, 1, 1, 1]))
    assert label_volumes(image, (53, 17, 9)) == pytest.approx([1.0, 1.4, 0])
    with pytest.raises(UserError, match="give 3-D maps"):
        label_volumes(nib.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), AFFINE), (1,))


def write(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(nifti.encode(cubes(), AFFINE))
    return str(folder / name)


def test_maps_are_found_in_a_dataset_and_in_a_table(tmp_path):
    root = tmp_path / "derivatives"
    first = write(root / "sub-01" / "anat", "sub-01_desc-hippocampus_dseg.nii.gz")
    second = write(root / "sub-synTLE0000003" / "ses-1" / "anat", "sub-synTLE0000003_ses-1_dseg.nii")
    write(root / "sub-02" / "anat", "sub-02_T1w.nii.gz")
    asked = ["sub-01", "syn-TLE-0000003", "sub-02", "sub-03"]
    assert find_label_maps(str(root), asked) == {"sub-01": first, "syn-TLE-0000003": second}
    table = tmp_path / "maps.tsv"
    table.write_text(
        "subject_id\tpath\nsub-01\tderivatives/sub-01/anat/sub-01_desc-hippocampus_dseg.nii.gz\nx\ty.nii\n"
    )
    assert find_label_maps(str(table), asked) == {"sub-01": first}


def test_what_cannot_be_found_is_said(tmp_path):
    with pytest.raises(UserError, match="does not exist; check the path"):
        find_label_maps(str(tmp_path / "nowhere"), ["sub-01"])
    with pytest.raises(UserError, match="has no label map of any of the 2 subjects, such as sub-01"):
        find_label_maps(str(tmp_path), ["sub-01", "sub-02"])
    for run in ("1", "2"):
        write(tmp_path / "sub-01" / "anat", f"sub-01_run-{run}_dseg.nii.gz")
    with pytest.raises(UserError, match=r"holds 2 label maps .* list one of each subject in a table"):
        find_label_maps(str(tmp_path), ["sub-01"])
    table = tmp_path / "maps.csv"
    table.write_text("subject,path\na,b\n")
    with pytest.raises(UserError, match="has no column subject_id"):
        find_label_maps(str(table), ["sub-01"])
