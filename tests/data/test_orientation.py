"""Where an image lies: which affine counts, in which units, and what contradicts itself."""

import nibabel as nib
import numpy as np
import pytest

from voxfleet.data.orientation import ROTATED, UNITS_CONVERTED, UNITS_IGNORED, to_ras
from voxfleet.errors import UserError

SHAPE = (6, 7, 8)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3.0, 0, -20], [0, 0, 4.0, -30], [0, 0, 0, 1]])
METRES, MM, MICROMETRES = 1, 2, 3


def image(sform=AFFINE, qform=AFFINE, units=MM):
    """An image with these affines, None for a code of 0."""
    found = nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), AFFINE)
    found.set_sform(sform, 0 if sform is None else 1)
    found.set_qform(qform, 0 if qform is None else 1)
    found.header["xyzt_units"] = units
    return found


def scaled(factor):
    return np.diag([factor, factor, factor, 1.0]) @ AFFINE


def mirrored(axis):
    return AFFINE @ np.diag(np.insert(np.ones(3), axis, -1.0))


def turned(degrees):
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(z=np.radians(degrees))
    return turn @ AFFINE


def test_axes_and_voxels_are_reordered_together():
    found, notes = to_ras(image(), None)
    assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
    np.testing.assert_allclose(found.affine @ [5, 0, 0, 1], AFFINE[:, 3])  # the first voxel is the last along x
    np.testing.assert_array_equal(found.get_fdata(), image().get_fdata()[::-1])
    assert notes == []


@pytest.mark.parametrize(
    ("factor", "units", "note"),
    [
        (1.0, 0, []),
        (0.001, METRES, [UNITS_CONVERTED]),
        (1000.0, MICROMETRES, [UNITS_CONVERTED]),
        (1000.0, MICROMETRES | 8, [UNITS_CONVERTED]),  # and seconds
        (1.0, METRES, [UNITS_IGNORED]),
        (1.0, MICROMETRES, [UNITS_IGNORED]),
    ],
)
def test_units_are_converted_where_they_make_the_size_of_a_head(factor, units, note):
    found, notes = to_ras(image(scaled(factor), scaled(factor), units), None)
    np.testing.assert_allclose(found.affine, to_ras(image(), None)[0].affine, atol=1e-5)
    assert notes == note


@pytest.mark.parametrize(("factor", "units"), [(1000.0, MM), (0.001, 0), (1e-6, METRES), (1e6, MICROMETRES)])
def test_sizes_that_no_unit_explains_are_refused(factor, units):
    with pytest.raises(UserError, match=r"^the affine gives voxels of .* mm, outside 0\.05-20 mm; correct the header$"):
        to_ras(image(scaled(factor), scaled(factor), units), None)


@pytest.mark.parametrize("other", [mirrored(0), mirrored(1), mirrored(2), turned(180)], ids=["x", "y", "z", "turned"])
def test_affines_that_contradict_each_other_are_refused_unless_one_is_right(other):
    with pytest.raises(UserError, match=r"contradict each other about left and right; .* source\.orientation"):
        to_ras(image(AFFINE, other), None)
    for orientation, right in (("sform", AFFINE), ("qform", other)):
        expected = to_ras(image(right, None), None)[0]
        found, notes = to_ras(image(AFFINE, other), orientation)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
        np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())
        assert notes == []


@pytest.mark.parametrize(("degrees", "note"), [(0.0, []), (0.5, []), (20.0, [ROTATED])])
def test_a_qform_that_is_turned_is_noted_and_the_sform_counts(degrees, note):
    found, notes = to_ras(image(AFFINE, turned(degrees)), None)
    np.testing.assert_array_equal(found.affine, to_ras(image(AFFINE, None), None)[0].affine)
    assert notes == note


@pytest.mark.parametrize("orientation", [None, "sform", "qform"])
def test_where_one_affine_is_there_it_counts(orientation):
    expected = to_ras(image(), None)[0].affine
    for one in (image(AFFINE, None), image(None, AFFINE)):
        np.testing.assert_allclose(to_ras(one, orientation)[0].affine, expected, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, 2.0], ids=["nan", "no rotation"])
def test_a_qform_that_is_no_rotation_does_not_matter_beside_an_sform(value):
    broken = image()
    broken.header["quatern_b"] = value
    np.testing.assert_array_equal(to_ras(broken, None)[0].affine, to_ras(image(), None)[0].affine)


def test_without_codes_left_and_right_are_unknown():
    with pytest.raises(UserError, match="neither sform nor qform"):
        to_ras(image(None, None), None)
