import numpy as np
import pytest

from voxfleet.data.geometry import geometry_of, voxels_in


def test_spacing_and_orientation_follow_from_the_affine():
    affine = np.array([[0, 0, 3, 5], [-1, 0, 0, 6], [0, 2, 0, 7], [0, 0, 0, 1]])
    assert geometry_of(affine) == {
        "affine": affine.tolist(),
        "spacing_mm": [1, 2, 3],
        "orientation": "PSR",
        "mirror_axis": None,
    }


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(3), "four rows"),
        (np.full((4, 4), np.nan), "four rows"),
        (np.ones((4, 4)), "the last 0, 0, 0, 1"),
        (np.diag([1, 0, 1, 1]), "no length"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "one plane"),
    ],
)
def test_what_is_no_affine(affine, words):
    with pytest.raises(ValueError, match=words):
        geometry_of(affine)


def test_a_box_holds_the_voxels_that_have_a_part_in_it():
    affine = np.array([[-2.0, 0, 0, 20], [0, 3, 0, -30], [0, 0, 4, 0], [0, 0, 0, 1]])  # the first axis goes left
    assert voxels_in([(1, 5), (-31.5, -25.5), (-100, 100)], affine, (16, 8, 8)) == (
        slice(8, 10),
        slice(0, 2),
        slice(0, 8),
    )
    with pytest.raises(ValueError, match=r"they reach \[\[-11, 21\], \[-32, -8\], \[-2, 30\]\] mm"):
        voxels_in([(1, 5), (-60, -40), (0, 10)], affine, (16, 8, 8))
