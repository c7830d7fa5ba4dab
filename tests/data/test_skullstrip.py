"""Cutting the brain out of a head, by a mask that is given or by deepbet."""

import sys
import types

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from voxfleet.data import skullstrip
from voxfleet.data.orientation import to_ras
from voxfleet.data.preprocess import PreprocessConfig, preprocess
from voxfleet.data.skullstrip import check_deepbet, deepbet_mask, mask_on
from voxfleet.errors import UserError

SHAPE = (48, 56, 52)
AFFINE = np.diag([4.0, 4, 4, 1])
AFFINE[:3, 3] = (-90.0, -130, -90)
RADII_MM = (65.0, 80.0, 62.0)


def radius() -> np.ndarray:
    """(D, H, W): 1 on the surface of the brain, an ellipsoid."""
    axes = np.meshgrid(
        *(4 * (np.arange(n) - (n - 1) / 2) / r for n, r in zip(SHAPE, RADII_MM, strict=True)), indexing="ij"
    )
    return np.sqrt(sum(axis**2 for axis in axes))


BRAIN = radius() < 1
SCALP = (radius() > 1.1) & (radius() < 1.25)


def image(data: np.ndarray, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, affine)


def head() -> nib.Nifti1Image:
    """A textured brain, a dark shell of bone, and a scalp twice as bright."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 1.5)
    return image((BRAIN * (500 + 400 * texture) + SCALP * 1000.0).astype(np.float32))


def config(**values) -> PreprocessConfig:
    return PreprocessConfig(spacing_mm=(4.0, 4.0, 4.0), shape=(48, 56, 48), percentiles=(0, 100), **values)


def test_a_mask_cuts_the_scalp_away_before_centre_and_intensities_are_found():
    masked = preprocess(head(), config(skull_strip="masks"), image(BRAIN.astype(np.uint8)))
    stripped = preprocess(image(np.where(BRAIN, head().get_fdata(), 0).astype(np.float32)), config())
    np.testing.assert_array_equal(masked.data, stripped.data)
    np.testing.assert_array_equal(masked.affine, stripped.affine)
    whole = preprocess(head(), config(), None)
    assert np.count_nonzero(whole.data) > 1.3 * np.count_nonzero(masked.data)


def test_a_mask_may_be_stored_in_another_direction():
    mask = np.zeros(SHAPE, np.float32)
    mask[3, 10, 20] = 0.4
    turned = image(mask).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    ordered, notes = to_ras(turned, None)
    assert np.argwhere(mask_on(ordered, SHAPE, AFFINE)).tolist() == [[3, 10, 20]]
    assert notes == []


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (image(np.ones((48, 56, 50), np.uint8)), "48x56x50 voxels for an image of 48x56x52"),
        (image(np.ones(SHAPE, np.uint8), AFFINE + np.eye(4, k=3)), "lies elsewhere"),
        (image(np.zeros(SHAPE, np.uint8)), "empty"),
        (None, "no brain mask"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, named):
    with pytest.raises(UserError, match=named):
        preprocess(head(), config(skull_strip="masks"), mask)


# --- deepbet


@pytest.fixture(autouse=True)
def _not_loaded_before():
    skullstrip._brain_extraction.cache_clear()
    yield
    skullstrip._brain_extraction.cache_clear()


def fake_deepbet(monkeypatch, run_model) -> list[dict]:
    made = []

    class BrainExtraction:
        def __init__(self, **settings):
            made.append(settings)

        def run_model(self, data):
            return run_model(data)

        def postprocess(self, mask):
            if not mask.any():
                raise ValueError("attempt to get argmax of an empty sequence")
            return mask

    monkeypatch.setitem(sys.modules, "deepbet", types.SimpleNamespace(BrainExtraction=BrainExtraction))
    return made


def test_deepbet_is_loaded_once_stays_on_the_cpu_and_its_mask_is_used(monkeypatch):
    made = fake_deepbet(monkeypatch, lambda data: np.where(BRAIN, 0.6, 0.4))
    volume = preprocess(head(), config(skull_strip="deepbet"))
    np.testing.assert_array_equal(deepbet_mask(head().get_fdata()), BRAIN)
    assert made == [{"no_gpu": True}]
    expected = preprocess(head(), config(skull_strip="masks"), image(BRAIN.astype(np.uint8)))
    np.testing.assert_array_equal(volume.data, expected.data)


def test_deepbet_without_a_brain_is_an_error(monkeypatch):
    fake_deepbet(monkeypatch, np.zeros_like)
    with pytest.raises(UserError, match="deepbet finds no brain"):
        preprocess(head(), config(skull_strip="deepbet"))


def test_deepbet_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepbet", None)
    with pytest.raises(UserError, match=r"pip install 'voxfleet\[skullstrip\]'"):
        check_deepbet()


@pytest.mark.slow
def test_the_real_deepbet_finds_the_template_in_a_made_up_head():
    """4 to 20 s and 2 GB: the ICBM152 brain, in a shell of fluid, bone and scalp."""
    pytest.importorskip("deepbet")
    datasets = pytest.importorskip("nilearn.datasets")
    template = np.pad(np.asarray(datasets.load_mni152_template(resolution=2).dataobj, dtype=np.float32), 14)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(template > 0.05 * template.max(), iterations=2))
    outside = ndimage.distance_transform_edt(~brain)  # voxels of 2 mm
    full = 800 * template / template.max()
    for nearest, furthest, level in ((0, 2, 120), (2, 4.5, 30), (4.5, 8, 900)):
        full[(outside > nearest) & (outside <= furthest)] = level
    full += np.abs(np.random.default_rng(0).normal(0, 15, full.shape)).astype(np.float32)
    found = deepbet_mask(full)
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.93
    assert not found[(outside > 4.5)].any()


def test_skull_strip_names_key_and_value():
    with pytest.raises(ValueError, match="skull_strip='bet'"):
        config(skull_strip="bet")
