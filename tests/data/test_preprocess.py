"""From a scan to a training volume: where things are, how bright they are, what is refused."""

import dataclasses
import re

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from voxfleet.data import nifti
from voxfleet.data.background import PADDING
from voxfleet.data.preprocess import (
    PreprocessConfig,
    common_affine,
    grid_affine,
    head_center,
    preprocess,
)
from voxfleet.errors import UserError

CONFIG = PreprocessConfig(spacing_mm=(4.0, 4.0, 4.0), shape=(40, 48, 40))
RADII = np.array([60.0, 75.0, 65.0])  # of the phantom's head, mm
SPOT = np.array([25.0, -30.0, 12.0])  # mm from the centre of the head: to the right, behind, above
SPOT_SIGMA = 9.0


def head(points: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Intensity at world points (..., 3): an ellipsoid with a soft edge and one bright spot."""
    offset = points - center
    # distance to the surface in mm, nearly: the edge falls from 100 to 0 over 8 mm
    inside = (1 - np.linalg.norm(offset / RADII, axis=-1)) * RADII.min()
    spot = np.exp(-((offset - SPOT) ** 2).sum(-1) / (2 * SPOT_SIGMA**2))
    return np.clip(inside / 8, 0, 1) * (100 + 60 * spot)


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(D, H, W, 3) world points of the voxels of a grid."""
    return nib.affines.apply_affine(affine, np.stack(np.indices(shape), axis=-1))


DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def scan_affine(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    *,
    axes: str = "RAS",
    tilt: float = 0.0,
    center: tuple[float, ...] = (0, 0, 0),
) -> np.ndarray:
    """Affine of a scan whose middle voxel stands at ``center``: axis codes, then ``tilt`` radians about two axes."""
    flip = np.array([DIRECTIONS[code] for code in axes]).T
    turn = nib.eulerangles.euler2mat(x=tilt, z=tilt / 2)
    affine = np.eye(4)
    affine[:3, :3] = turn @ flip @ np.diag(spacing)
    affine[:3, 3] = np.asarray(center) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


SCANS = {
    "plain": ((50, 60, 50), scan_affine((50, 60, 50), (3, 3, 3))),
    "flipped": ((50, 60, 50), scan_affine((50, 60, 50), (3, 3, 3), axes="LPS", center=(5, 4, 6))),
    "permuted": ((60, 50, 50), scan_affine((60, 50, 50), (3, 3, 3), axes="PIR", center=(3, 0, 4))),
    "oblique": ((60, 66, 60), scan_affine((60, 66, 60), (3, 3, 3), axes="LAS", tilt=0.35, center=(7, -8, 9))),
    "fine": ((90, 66, 90), scan_affine((90, 66, 90), (1.8, 2.8, 2.0), axes="LAI", tilt=-0.2, center=(2, 3, 4))),
    "coarse": ((30, 40, 35), scan_affine((30, 40, 35), (6, 5, 5), tilt=0.1)),
}
HEAD_AT = np.array([6.0, -5.0, 8.0])


def scan(name: str = "plain") -> nib.Nifti1Image:
    shape, affine = SCANS[name]
    return nib.Nifti1Image(head(world(shape, affine), HEAD_AT).astype(np.float32), affine)


def changed(change) -> nib.Nifti1Image:
    """The plain scan with its voxels changed in place."""
    image = scan()
    data = image.get_fdata(dtype=np.float32)
    change(data)
    return nib.Nifti1Image(data, image.affine)


def spot_in_world(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World position of the bright spot, weighted over the brightest voxels."""
    weight = np.clip(data - 0.8 * data.max(), 0, None)
    return nib.affines.apply_affine(affine, ndimage.center_of_mass(weight))


# --- Where things are


@pytest.mark.parametrize("center", ["head", "world"])
@pytest.mark.parametrize("name", SCANS)
def test_a_point_of_the_head_keeps_its_world_position(name, center):
    config = dataclasses.replace(CONFIG, center=center, world_center_mm=(2.0, -3.0, 1.0), percentiles=(0, 100))
    volume = preprocess(scan(name), config)
    assert volume.data.shape == config.shape
    assert volume.data.dtype == np.float32
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(volume.affine), config.spacing_mm)
    tolerance = 1.0 if name == "coarse" else 0.5
    np.testing.assert_allclose(spot_in_world(volume.data, volume.affine), HEAD_AT + SPOT, atol=tolerance)
    # and everywhere: what the phantom is at the world points of the grid, but for blur
    truth = head(world(config.shape, volume.affine), HEAD_AT)
    inner = ndimage.binary_erosion(truth > 99, iterations=2)
    fit = np.polynomial.Polynomial.fit(truth[inner], volume.data[inner], 1)
    assert np.corrcoef(truth.ravel(), volume.data.ravel())[0, 1] > 0.99
    assert np.abs(fit(truth[inner]) - volume.data[inner]).max() < 0.1


def test_a_scan_that_is_on_the_grid_is_not_interpolated():
    config = PreprocessConfig(spacing_mm=(4, 4, 4), shape=(40, 48, 40), center="world", percentiles=(0, 100))
    affine = grid_affine(config, config.world_center_mm)
    # the field of view cuts the crown: its last slice must survive an affine that is off by rounding
    data = head(world(config.shape, affine), np.array([0.0, -17, 40])).astype(np.float32)
    assert data[..., -1].max() > 90
    source = affine.copy()
    source[2, 3] -= 1e-4
    volume = preprocess(nib.Nifti1Image(data, source), config)
    np.testing.assert_array_equal(volume.affine, affine)
    inside = data[data > 0.1 * np.percentile(data[data > 0], 98)]
    expected = np.clip((data - inside.min()) / (data.max() - inside.min()), 0, 1)
    np.testing.assert_allclose(volume.data, expected, atol=1e-3)


def test_the_order_of_the_axes_in_the_file_does_not_matter():
    config = dataclasses.replace(CONFIG, spacing_mm=(9.0, 3.0, 5.0))
    image = scan("fine")
    turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    assert nib.aff2axcodes(turned.affine) != nib.aff2axcodes(image.affine)
    expected = preprocess(image, config)
    volume = preprocess(turned, config)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-3)
    np.testing.assert_allclose(volume.data, expected.data, atol=1e-3)


@pytest.mark.parametrize("name", SCANS)
def test_the_head_is_centred_however_it_was_scanned(name):
    image = scan(name)
    found = head_center(image.get_fdata(), image.affine, threshold=15.0)
    np.testing.assert_allclose(found, HEAD_AT, atol=1.0)


def test_neck_and_specks_do_not_move_the_centre():
    shape, affine = (60, 70, 110), scan_affine((60, 70, 110), (3, 3, 3), center=(0, 0, -75))
    points = world(shape, affine)
    data = head(points, np.zeros(3))
    alone = head_center(data, affine, threshold=15.0)
    neck = (np.linalg.norm(points[..., :2] - [0, -20], axis=-1) < 50) & (points[..., 2] < -20)
    with_neck = np.where(neck, 80, data)
    with_neck[2, 2, -2:] = with_neck[-3, 60, 5] = 90
    found = head_center(with_neck, affine, threshold=15.0)
    np.testing.assert_allclose(found[:2], alone[:2], atol=3.0)
    crown = RADII[2]
    assert found[2] == pytest.approx(crown - 170 / 2, abs=4.0)


def test_the_grid_is_a_pure_function_of_the_configuration():
    affine = grid_affine(CONFIG, (1.0, 2.0, 3.0))
    assert affine.dtype == np.float64
    np.testing.assert_allclose(nib.affines.apply_affine(affine, (np.array(CONFIG.shape) - 1) / 2), (1, 2, 3))
    np.testing.assert_allclose(affine[:3, :3], np.diag([4, 4, 4]))
    in_world = dataclasses.replace(CONFIG, center="world")
    for name in ("plain", "oblique"):
        expected = grid_affine(in_world, in_world.world_center_mm)
        np.testing.assert_array_equal(preprocess(scan(name), in_world).affine, expected)


def test_the_affine_of_a_cohort_is_the_mean_of_its_heads_or_the_world_grid():
    affines = [grid_affine(CONFIG, center) for center in ((0, 0, 0), (2, -4, 6))]
    np.testing.assert_allclose(common_affine(CONFIG, affines), grid_affine(CONFIG, (1, -2, 3)))
    in_world = dataclasses.replace(CONFIG, center="world")
    np.testing.assert_array_equal(common_affine(in_world, affines[:1]), grid_affine(in_world, in_world.world_center_mm))
    with pytest.raises(ValueError, match="affines is empty"):
        common_affine(CONFIG, [])


# --- How bright they are


def test_the_head_fills_0_to_1_and_the_background_is_0():
    volume = preprocess(scan(), CONFIG)
    points = world(CONFIG.shape, volume.affine)
    truth = head(points, HEAD_AT)
    assert volume.data.min() == 0
    assert volume.data.max() == 1
    far = ndimage.distance_transform_edt(truth == 0) > 2
    assert far.any()
    assert not volume.data[far].any()  # no ringing
    assert volume.data[truth > 99].min() > 0.4


def test_a_sharp_edge_does_not_ring():
    shape, affine = (30, 36, 32), scan_affine((30, 36, 32), (5, 5, 5))
    distance = np.linalg.norm(world(shape, affine) / RADII, axis=-1)
    data = np.where(distance < 1, 100.0, 0) + np.where(distance < 0.3, 50.0, 0)
    volume = preprocess(nib.Nifti1Image(data, affine), dataclasses.replace(CONFIG, percentiles=(0, 100)))
    distance = np.linalg.norm(world(CONFIG.shape, volume.affine) / RADII, axis=-1)
    flat = (distance > 0.5) & (distance < 0.85)  # farther than a voxel of the scan from either edge
    assert np.ptp(volume.data[flat]) < 1e-4
    assert not volume.data[distance > 1.15].any()


def test_noise_in_the_air_and_a_few_hot_voxels_do_not_set_the_scale():
    clean = preprocess(scan(), CONFIG)
    rng = np.random.default_rng(0)

    def disturb(data):
        data[:] = np.hypot(data + rng.normal(0, 3, data.shape), rng.normal(0, 3, data.shape))
        data[rng.random(data.shape) < 1e-4] = 5000

    noisy = preprocess(changed(disturb), CONFIG)
    assert np.abs(noisy.affine - clean.affine).max() <= 4.0  # a voxel
    truth = head(world(CONFIG.shape, noisy.affine), HEAD_AT)
    quiet = ndimage.distance_transform_edt(truth == 0) > 3
    assert np.mean(noisy.data[quiet] > 0) < 0.02
    assert np.median(noisy.data[truth > 99]) == pytest.approx(np.median(clean.data[clean.data > 0.4]), abs=0.1)


def test_scale_and_offset_of_the_stored_values_do_not_matter():
    expected = preprocess(scan(), CONFIG)
    image = scan()
    other = nib.Nifti1Image(image.get_fdata() * 37 + 500, image.affine)
    np.testing.assert_allclose(preprocess(other, CONFIG).data, expected.data, atol=1e-4)


def test_the_slope_of_the_file_is_applied(tmp_path):
    image = scan()
    stored = (200 - np.rint(image.get_fdata())).astype(np.int16)  # dark in the file, bright by slope -1, intercept 200
    inverted = nib.Nifti1Image(stored, image.affine)
    inverted.header.set_slope_inter(-1, 200)
    (tmp_path / "x.nii").write_bytes(inverted.to_bytes())
    image = nifti.read(str(tmp_path / "x.nii"))
    assert image.dataobj.slope == -1
    np.testing.assert_allclose(preprocess(image, CONFIG).data, preprocess(scan(), CONFIG).data, atol=0.02)


def test_fine_texture_is_averaged_not_aliased():
    shape, affine = (80, 90, 80), scan_affine((80, 90, 80), (1.8, 1.8, 1.8))
    data = head(world(shape, affine), np.zeros(3))
    texture = 1 + 0.4 * np.random.default_rng(0).choice([-1, 1], shape)
    config = dataclasses.replace(CONFIG, center="world", world_center_mm=(0.9, 0.9, 0.9))
    plain = preprocess(nib.Nifti1Image(data, affine), config).data
    textured = preprocess(nib.Nifti1Image(data * texture, affine), config).data
    inner = ndimage.binary_erosion(plain > 0.4, iterations=3)
    assert np.std(textured[inner] / plain[inner]) < 0.12  # 0.4 in the scan


def test_percentiles_clip_the_tails():
    wide = preprocess(scan(), dataclasses.replace(CONFIG, percentiles=(0, 100)))
    narrow = preprocess(scan(), dataclasses.replace(CONFIG, percentiles=(20, 90)))
    foreground = wide.data > 0
    assert np.mean(narrow.data[foreground] == 1) == pytest.approx(0.10, abs=0.02)
    assert np.mean(narrow.data[foreground] == 0) == pytest.approx(0.20, abs=0.02)


def test_a_small_stripped_brain_in_a_large_field_of_view_is_found():
    shape, affine = (50, 50, 50), scan_affine((50, 50, 50), (8, 8, 8))
    data = head(world(shape, affine), np.array([90.0, 120, -60]))
    assert np.mean(data > 0) < 0.02
    volume = preprocess(nib.Nifti1Image(data, affine), CONFIG)
    found = nib.affines.apply_affine(volume.affine, (np.array(CONFIG.shape) - 1) / 2)
    np.testing.assert_allclose(found, (90, 120, -60), atol=4)  # half a voxel of the scan
    assert volume.data.max() == 1


def test_nan_around_the_head_is_background():
    def nan_outside(data):
        data[data < 20] = np.nan

    volume = preprocess(changed(nan_outside), CONFIG)
    assert np.isfinite(volume.data).all()
    assert volume.data[0].max() == 0
    assert np.corrcoef(volume.data.ravel(), preprocess(scan(), CONFIG).data.ravel())[0, 1] > 0.95


# --- Padding, outliers, and noise below 0


IN_WORLD = dataclasses.replace(CONFIG, center="world", world_center_mm=(0, 0, 0))


@pytest.fixture(scope="module")
def clean():
    """The volumes of the plain scan, by what is at the centre of the grid."""
    return {config.center: preprocess(scan(), config) for config in (CONFIG, IN_WORLD)}


def world_distance(center) -> np.ndarray:
    """(D, H, W): mm from ``center``, at the voxels of the plain scan."""
    return np.linalg.norm(world(*SCANS["plain"]) - center, axis=-1)


def pad_corners(value, jitter=0.0):
    def change(data):
        outside = world_distance(np.zeros(3)) > 95
        data[outside] = value + jitter * np.random.default_rng(0).random(np.count_nonzero(outside))

    return change


def pad_face(value):
    return lambda data: data.__setitem__(slice(0, 4), value)


def pad_twice(data):
    pad_face(-1000)(data)
    data[:, :3] = -2000


def pad_smoothly(data):
    """As a resampled image: from air to padding in some steps."""
    pad_face(-2000)(data)
    data[4], data[5] = -1200, -300


def ring(data):
    """As splines do, in air and beside the head."""
    data += np.where(data < 30, np.random.default_rng(0).uniform(-6, 6, data.shape), 0)


def subtract_noise_floor(data):
    data += np.random.default_rng(0).normal(0, 5, data.shape)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(pad_corners(-2000), id="corners"),
        pytest.param(pad_corners(-30), id="corners, near"),
        pytest.param(pad_corners(-10), id="corners, nearer"),
        pytest.param(pad_corners(-2000, jitter=5), id="corners, not constant"),
        pytest.param(pad_face(-1000), id="one face"),
        pytest.param(pad_twice, id="two values"),
        pytest.param(pad_smoothly, id="interpolated"),
        pytest.param(ring, id="ringing"),
        pytest.param(subtract_noise_floor, id="noise about 0"),
        pytest.param(lambda data: data.__setitem__((2, 2, 2), -2000), id="one voxel of air"),
        pytest.param(lambda data: data.__setitem__((25, 30, 25), -2000), id="one voxel of the head"),
        pytest.param(lambda data: data.__setitem__((slice(2, 5), 2, 2), -30), id="three voxels"),
    ],
)
def test_what_lies_below_air_moves_neither_the_head_nor_its_intensities(clean, change):
    image = changed(change)
    np.testing.assert_allclose(preprocess(image, CONFIG).affine, clean["head"].affine, atol=1.5)
    data, expected = preprocess(image, IN_WORLD).data, clean["world"].data
    assert np.corrcoef(data.ravel(), expected.ravel())[0, 1] > 0.998
    assert np.median(data[data > 0]) == pytest.approx(np.median(expected[expected > 0]), abs=0.05)


def test_one_dark_voxel_is_not_smeared_over_a_coarser_grid():
    config = dataclasses.replace(CONFIG, spacing_mm=(8.0, 8.0, 8.0), shape=(20, 24, 20))
    expected = preprocess(scan(), config)
    volume = preprocess(changed(lambda data: data.__setitem__((25, 30, 25), -32768)), config)
    np.testing.assert_allclose(volume.data, expected.data, atol=0.05)


@pytest.mark.parametrize(("change", "is_padding"), [(pad_corners(-2000), True), (pad_twice, True), (ring, False)])
def test_padding_is_noted(change, is_padding):
    assert (PADDING in preprocess(changed(change), CONFIG).notes) == is_padding


def test_images_whose_air_is_not_0_have_no_padding():
    image = scan()
    below = nib.Nifti1Image(image.get_fdata() - 400, image.affine)
    volume = preprocess(below, CONFIG)
    np.testing.assert_allclose(volume.data, preprocess(image, CONFIG).data, atol=1e-4)
    assert volume.notes == ()


def brain(scale, offset):
    """A stripped brain, mostly of one intensity (70), with darker and brighter parts; all values scaled."""
    image = scan()
    inside = image.get_fdata() > 50
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=inside.shape), 1.5)
    texture /= texture.std()
    values = 70 + 20 * (texture - np.clip(texture, -1, 1))
    return nib.Nifti1Image((np.where(inside, values, 0) * scale + offset).astype(np.float32), image.affine)


@pytest.mark.parametrize(("scale", "offset"), [(1, -70), (0.05, -3.5), (2, -130)])
def test_the_background_of_a_stripped_brain_is_no_padding(scale, offset):
    expected, volume = preprocess(brain(1, 0), CONFIG), preprocess(brain(scale, offset), CONFIG)
    np.testing.assert_allclose(volume.data, expected.data, atol=1e-3)
    assert volume.notes == ()


def test_integers_that_a_slope_spreads_over_their_type_are_not_wrapped():
    image = scan()
    image.set_data_dtype(np.int16)  # nibabel uses the whole range
    again = nib.Nifti1Image.from_bytes(image.to_bytes())
    assert again.dataobj.get_unscaled().min() < -32000
    np.testing.assert_allclose(preprocess(again, CONFIG).data, preprocess(image, CONFIG).data, atol=1e-3)


@pytest.mark.parametrize("value", [-2000, -30])
@pytest.mark.parametrize("where", [(2, 2, 2), (25, 30, 25)], ids=["air", "brain"])
def test_one_voxel_does_not_spoil_an_image_that_is_stripped(value, where):
    config = dataclasses.replace(CONFIG, skull_strip="masks")
    image = scan()
    mask = nib.Nifti1Image((image.get_fdata() > 60).astype(np.uint8), image.affine)
    expected = preprocess(image, config, mask)
    volume = preprocess(changed(lambda data: data.__setitem__(where, value)), config, mask)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=0.1)
    assert np.corrcoef(volume.data.ravel(), expected.data.ravel())[0, 1] > 0.999


def test_a_z_scored_brain_with_its_mask_keeps_its_contrast():
    image = scan()
    mask = nib.Nifti1Image((image.get_fdata() > 20).astype(np.uint8), image.affine)
    config = dataclasses.replace(CONFIG, skull_strip="masks")
    volume, expected = preprocess(changed(z_scored), config, mask), preprocess(image, config, mask)
    inside = expected.data > 0.2
    assert np.corrcoef(volume.data[inside], expected.data[inside])[0, 1] > 0.99


def test_trailing_axes_of_one_are_dropped():
    image = scan("oblique")
    padded = nib.Nifti1Image(image.get_fdata()[..., None, None], image.affine)
    np.testing.assert_allclose(preprocess(padded, CONFIG).data, preprocess(image, CONFIG).data, atol=1e-5)


def test_nothing_of_the_header_is_carried_over():
    image = scan()
    image.header["descrip"] = b"JOHN DOE 1970"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"JOHN DOE"))
    volume = preprocess(image, CONFIG)
    assert {field.name for field in dataclasses.fields(volume)} == {"data", "affine", "notes"}
    assert type(volume.data) is type(volume.affine) is np.ndarray
    assert volume.notes == ()
    assert volume.affine.dtype == np.float64


# --- What is refused


def with_affine(affine: np.ndarray) -> nib.Nifti1Image:
    data = bytearray(nib.Nifti1Image(np.ones((9, 9, 9), dtype=np.float32), np.eye(4)).to_bytes())
    data[280:328] = affine[:3].astype("<f4").tobytes()  # srow_x, y, z: nibabel's setters refuse some of these
    return nib.Nifti1Image.from_bytes(bytes(data))


def without_codes() -> nib.Nifti1Image:
    return nib.Nifti1Image(scan().get_fdata(), None)


def rgb() -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros((9, 9, 9), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4))


def set_to(value, where=...):
    def change(data):
        data[where] = value

    return lambda: changed(change)


def z_scored(data):
    inside = data > 20
    data[inside] = (data[inside] - data[inside].mean()) / data[inside].std()
    data[~inside] = 0


def labels():
    image = scan()
    image.header.set_intent("label")
    return image


def wrapped(dtype):
    """Intensities beyond the type's largest, as converters wrap them."""
    high, unsigned = np.iinfo(dtype).max, np.dtype(dtype).str.replace("i", "u")
    data = np.rint(scan().get_fdata() / 160 * 1.9 * high).astype(unsigned).view(dtype)
    return nib.Nifti1Image(data, scan().affine)


INFINITE = np.eye(4)
INFINITE[0, 3] = np.inf
PLANE = np.eye(4)
PLANE[:3, 2] = PLANE[:3, 1]
REFUSED = {
    "4-D": (lambda: nib.Nifti1Image(np.ones((9, 9, 9, 2)), np.eye(4)), "its shape is (9, 9, 9, 2)"),
    "2-D": (lambda: nib.Nifti1Image(np.ones((9, 9)), np.diag([-1.0, 1, 1, 1])), "its shape is (9, 9)"),
    "one slice": (lambda: nib.Nifti1Image(np.ones((9, 9, 1)), np.eye(4)), "its shape is (9, 9, 1)"),
    "colour": (rgb, "not real numbers"),
    "complex": (lambda: nib.Nifti1Image(np.ones((9, 9, 9), dtype=np.complex64), np.eye(4)), "complex64"),
    "zero affine": (lambda: with_affine(np.diag([0.0, 0, 0, 1])), "voxels of 0 x 0 x 0 mm"),
    "affine in metres": (lambda: with_affine(np.diag([0.001, 0.001, 0.001, 1])), "0.001 mm"),
    "affine of NaN": (lambda: with_affine(np.full((4, 4), np.nan)), "nan"),
    "infinite origin": (lambda: with_affine(INFINITE), "degenerate"),
    "flat axes": (lambda: with_affine(PLANE), "degenerate"),
    "no orientation": (without_codes, "neither sform nor qform"),
    "all NaN": (set_to(np.nan), "all voxels are NaN"),
    "NaN inside": (set_to(np.nan, (25, 30, 25)), "NaN voxels inside the head"),
    "infinite voxel": (set_to(-np.inf, (25, 30, 25)), "infinite voxels"),
    "constant": (set_to(7), "constant (7 everywhere)"),
    "z-scored": (lambda: changed(z_scored), "z-scored, inverted, or noise"),
    "labels": (labels, "the voxels are labels"),
    "wrapped intensities": (lambda: wrapped(np.int16), "range of int16 from -32"),
    "wrapped intensities of a byte": (lambda: wrapped(np.int8), "range of int8 from -12"),
    "bright air": (lambda: changed(lambda data: np.copyto(data, 200 - data)), "z-scored, inverted, or noise"),
    "a mask": (lambda: changed(lambda data: np.copyto(data, data > 50)), "not a mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_image_is_one_line(name):
    make, part = REFUSED[name]
    # the grid of the plain scan: nothing is blurred, so that a mask stays one
    config = dataclasses.replace(CONFIG, spacing_mm=(3, 3, 3), center="world", world_center_mm=(0, 0, 0))
    with pytest.raises(UserError, match=re.escape(part)) as error:
        preprocess(make(), config)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)  # what to do


def test_a_grid_beside_the_head_is_one_line():
    config = dataclasses.replace(CONFIG, center="world", world_center_mm=(0, 0, 900))
    with pytest.raises(UserError, match="no head lies in the grid; use center=head"):
        preprocess(scan(), config)


@pytest.mark.parametrize(
    "values",
    [
        {"spacing_mm": (2, 2, 0)},
        {"spacing_mm": (2, 2)},
        {"spacing_mm": (2, 2, float("nan"))},
        {"shape": (80, 96, 1)},
        {"percentiles": (99, 1)},
        {"percentiles": (0, 101)},
        {"center": "brain"},
        {"world_center_mm": (0, float("inf"), 0)},
    ],
)
def test_config_names_key_and_value(values):
    [(key, value)] = values.items()
    with pytest.raises(ValueError, match=re.escape(f"{key}={value!r} must be")):
        PreprocessConfig(**values)


# --- Measures
