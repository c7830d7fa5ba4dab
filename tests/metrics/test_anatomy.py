"""Anatomy of phantoms whose tissues, contrast, symmetry and spectrum are known."""

import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, fourier_gaussian, gaussian_filter, shift

from voxfleet.metrics.anatomy import (
    MEASURES,
    brain_mask,
    cnr,
    hippocampal_figures,
    log_spectral_distance,
    measures,
    power_spectrum,
    sharpness,
    symmetry,
    tissue_classes,
    tissue_volumes,
    ventricles,
)

SPACING = (2.0, 2.0, 2.5)
LEVELS = (0.25, 0.55, 0.8)  # fluid, grey, white


def phantom(noise=0.0, levels=LEVELS, seed=0):
    """A ball of white matter around a ventricle, in a shell of grey in a shell of fluid; and its classes."""
    axes = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in (32, 36, 30)], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    truth = np.select([radius < 2.5, radius < 8.3, radius < 11.3, radius < 12.7], [1, 3, 2, 1], 0)
    volume = np.array([0, *levels])[truth]
    volume = volume + noise * np.random.default_rng(seed).normal(size=volume.shape) * (truth > 0)
    return np.clip(volume, 0, 1).astype(np.float32), truth


@pytest.mark.parametrize("noise", [0, 0.03])
def test_tissues_of_a_phantom_are_found(noise):
    volume, truth = phantom(noise)
    classes = tissue_classes(volume)
    assert (classes == truth).mean() > 0.9999
    volumes = tissue_volumes(classes, SPACING)
    expected = [np.count_nonzero(truth == tissue) * 0.01 for tissue in (1, 2, 3)]
    assert list(volumes) == ["csf_ml", "grey_ml", "white_ml"]
    np.testing.assert_allclose(list(volumes.values()), expected, rtol=0.01)


def test_ventricles_are_the_fluid_deep_inside():
    _, truth = phantom()
    middle = np.s_[12:20, 14:22, 11:19]
    assert ventricles(truth, SPACING) == pytest.approx(np.count_nonzero(truth[middle] == 1) * 0.01)
    assert np.count_nonzero(truth == 1) > 2 * np.count_nonzero(truth[middle] == 1)  # there is more fluid outside
    assert ventricles(truth, [edge / 2 for edge in SPACING]) == 0  # at half the size nothing is so deep


def test_tissues_do_not_depend_on_the_gain():
    volume, _ = phantom(0.03)
    assert (tissue_classes(volume) == tissue_classes(0.8 * volume)).mean() > 0.999


def test_dark_ventricles_are_brain_and_specks_are_not():
    volume, truth = phantom()
    volume += 0.05 * (truth == 0)  # what a decoder leaves
    volume[15:17, 17:19, 14:16] = 0
    volume[0, 0, 0] = 0.9
    np.testing.assert_array_equal(brain_mask(volume), truth > 0)


def test_contrast_is_in_units_of_the_noise():
    for noise, levels in ((0.02, LEVELS), (0.04, LEVELS), (0.02, (0.25, 0.7, 0.8))):
        volume, truth = phantom(noise, levels)
        assert cnr(volume, truth) == pytest.approx((levels[2] - levels[1]) / noise, rel=0.1)
    assert cnr(*phantom()) == math.inf


def test_symmetry_is_the_correlation_with_the_mirror_image():
    volume, _ = phantom(0.05)
    assert symmetry(volume) == pytest.approx(np.corrcoef(volume.ravel(), volume[::-1].ravel())[0, 1])
    assert symmetry(phantom()[0]) == pytest.approx(1)
    lopsided = volume * np.where(np.arange(32) < 16, 1, 0.7)[:, None, None]
    assert symmetry(lopsided) < symmetry(volume) - 0.02
    assert symmetry(shift(volume, (3, 0, 0))) < symmetry(volume) - 0.05
    assert symmetry(volume * 0) == 0


def texture(radius_mm, blur_mm=0.0, seed=0):
    """A brain (a ball on a grid of 2 mm) of blurred white noise, and its mask."""
    axes = np.meshgrid(*[2.0 * np.arange(n) - (n - 1) for n in (48, 52, 48)], indexing="ij")
    brain = sum(axis**2 for axis in axes) < radius_mm**2
    noise = np.fft.fftn(np.random.default_rng(seed).normal(size=brain.shape))
    return brain * np.fft.ifftn(fourier_gaussian(noise, blur_mm / 2)).real, brain


def root_mean_square_gradient(volume):
    """The former sharpness (Tenengrad): per mm, a voxel away from the surface of the brain."""
    inside = binary_erosion(brain_mask(volume), np.ones((3, 3, 3)))
    return math.sqrt(sum(np.square(part[inside]).mean() for part in np.gradient(volume, *SPACING)))


@pytest.mark.parametrize("blur_mm", [0, 1, 2])
def test_sharpness_is_the_share_of_energy_in_the_upper_half_of_the_frequencies(blur_mm):
    volume, brain = texture(40, blur_mm)
    found = np.arange(1, 25) / 96  # 96 mm is the shortest edge
    energy = found**2 * np.exp(-((2 * np.pi * blur_mm * found) ** 2))  # of Gaussian blur
    expected = energy[found > 1 / 8].sum() / energy[found >= 1 / 50].sum()
    assert sharpness(volume, brain, (2, 2, 2)) == pytest.approx(expected, abs=0.02)


def test_sharpness_of_two_waves_is_the_share_of_the_finer():
    _, brain = texture(40)
    y, z = 2 * np.pi * 2 * np.arange(52)[:, None], 2 * np.pi * 2 * np.arange(48)
    volume = brain * (3 + np.cos(y / 20) + 0.5 * np.cos(z / 6))
    assert sharpness(volume, brain, (2, 2, 2)) == pytest.approx(0.25 / 1.25, rel=0.05)


def test_sharpness_depends_on_neither_gain_nor_offset_nor_the_size_of_the_brain():
    volume, brain = texture(40, 1.5)
    value = sharpness(volume, brain, (2, 2, 2))
    assert sharpness(0.2 * volume + 3 * brain, brain, (2, 2, 2)) == pytest.approx(value)
    for radius in (28, 34, 44):
        others = [sharpness(*texture(radius, 1.5, seed), (2, 2, 2)) for seed in range(4)]
        assert np.mean(others) == pytest.approx(value, rel=0.05)


def test_sharpness_hardly_depends_on_gamma_and_the_edge_of_the_mask():
    volume, truth = phantom(0.02)
    value, blurred = (sharpness(v, truth > 0, SPACING) for v in (volume, gaussian_filter(volume, 1)))
    changes = [sharpness(volume**gamma, truth > 0, SPACING) for gamma in (0.7, 1.4)]
    changes += [sharpness(volume, change(truth > 0), SPACING) for change in (binary_dilation, binary_erosion)]
    assert max(abs(change - value) for change in changes) < 0.3 * (value - blurred)


@pytest.mark.parametrize("levels", [LEVELS, (0.2, 0.3, 0.4), (0.15, 0.6, 1.0)])
def test_sharpness_falls_with_blur_whatever_the_contrast(levels):
    volume, _ = phantom(0.01, levels)
    spacing_mm = (4, 4, 5)  # a head of 10 to 13 cm
    values = [measures(gaussian_filter(volume, width), spacing_mm)["sharpness"] for width in (0, 0.5, 0.75, 1, 1.5, 2)]
    assert all(finer > 1.05 * coarser for finer, coarser in itertools.pairwise(values))


def test_a_blurred_volume_of_more_contrast_is_not_sharper():
    volume, _ = phantom(0.02, (0.2, 0.45, 0.65))
    blurred = 1.4 * gaussian_filter(volume, 1)
    assert root_mean_square_gradient(blurred) > root_mean_square_gradient(volume)
    assert measures(blurred, SPACING)["sharpness"] < 0.5 * measures(volume, SPACING)["sharpness"]


def test_the_edge_that_blur_spreads_into_the_mask_does_not_count():
    """Blur lets the mask grow into the air, so that the ramp at the surface lies inside it."""
    volume, truth = phantom(levels=(0.5, 0.55, 0.6))
    blurred = gaussian_filter(volume, 1.5)
    assert root_mean_square_gradient(blurred) > 2 * root_mean_square_gradient(volume)
    mask = brain_mask(blurred)
    assert np.count_nonzero(mask) > 1.1 * np.count_nonzero(truth)
    assert sharpness(blurred, mask, SPACING) < 0.5 * sharpness(volume, truth > 0, SPACING)


def test_blur_and_noise_are_told_apart():
    volume, _ = phantom(0.02)
    plain = measures(volume, SPACING)
    assert tuple(plain) == MEASURES
    blurred = measures(gaussian_filter(volume, 1), SPACING)
    noisy = measures(phantom(0.06)[0], SPACING)
    assert blurred["sharpness"] < 0.8 * plain["sharpness"]
    assert noisy["sharpness"] > plain["sharpness"]
    assert noisy["cnr"] < 0.5 * plain["cnr"]


def test_shrunken_ventricles_lower_the_fluid():
    volume, truth = phantom(0.02)
    ventricle = np.zeros(truth.shape, dtype=bool)
    ventricle[12:20, 14:22, 11:19] = truth[12:20, 14:22, 11:19] == 1
    filled = np.where(ventricle, np.float32(LEVELS[2]), volume)
    change = measures(filled, SPACING)["csf_ml"] - measures(volume, SPACING)["csf_ml"]
    assert change == pytest.approx(-np.count_nonzero(ventricle) * 0.01, rel=0.05)


@pytest.mark.parametrize(("axis", "periods"), [(0, 3), (1, 5), (2, 2)])
def test_a_cosine_sits_in_its_bin(axis, periods):
    shape, spacing = (24, 40, 30), (2.0, 1.5, 1.6)  # edges of 48, 60 and 48 mm
    wave = np.cos(2 * np.pi * periods * np.arange(shape[axis]) / shape[axis])
    volume = np.broadcast_to(np.expand_dims(wave, [a for a in range(3) if a != axis]), shape) + 0.5
    frequencies, power = power_spectrum(volume, spacing)
    np.testing.assert_allclose(frequencies, np.arange(1, 13) / 48)
    true = periods / (shape[axis] * spacing[axis])
    assert abs(frequencies[power.argmax()] - true) <= 0.5 / 48
    assert np.delete(power, power.argmax()).max() < 1e-20


def test_power_is_variance_and_white_noise_is_flat():
    noise = np.random.default_rng(0).normal(0, 0.1, (32, 32, 32))
    _, power = power_spectrum(noise, (1, 1, 1))
    np.testing.assert_allclose(power[3:] * noise.size, 0.01, rtol=0.15)


def test_spectral_distance_is_in_decibel():
    volume = phantom(0.02)[0]
    (_, plain), (_, doubled), (_, blurred) = (
        power_spectrum(v, SPACING) for v in (volume, 2 * volume, gaussian_filter(volume, 1))
    )
    assert log_spectral_distance(plain, plain) == 0
    assert log_spectral_distance(plain, doubled) == pytest.approx(20 * math.log10(2))
    assert log_spectral_distance(np.array([1.0, 10.0]), np.array([10.0, 10.0])) == pytest.approx(math.sqrt(50))
    other = power_spectrum(phantom(0.02, seed=1)[0], SPACING)[1]
    assert log_spectral_distance(plain, blurred) > 5 * log_spectral_distance(plain, other)


def test_what_hippocampal_volumes_say():
    found = hippocampal_figures(np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [0.0, 1.0], [math.nan, 1.0], [0.0, 0.0]]))
    assert found["hippocampi_ml"][:4] == [4, 4, 4, 1]
    assert found["hippocampus_smaller_ml"][:4] == [1, 1, 2, 0]
    assert found["hippocampus_asymmetry"][:4] == [1, 1, 0, 2]  # whichever side it is
    assert all(math.isnan(values[4]) for values in found.values())
    assert math.isnan(found["hippocampus_asymmetry"][5])


BAD = [
    (np.zeros((3, 3)), "give"),
    (np.zeros((0, 3, 3)), "give"),
    (np.full((4, 4, 4), np.nan), "64 voxels are not finite"),
]


@pytest.mark.parametrize(("volume", "reason"), BAD)
def test_what_is_no_volume_is_refused(volume, reason):
    ones = np.ones(volume.shape, dtype=bool)
    for measure in (
        brain_mask,
        tissue_classes,
        symmetry,
        lambda v: cnr(v, ones),
        lambda v: sharpness(v, ones, SPACING),
        lambda v: power_spectrum(v, SPACING),
        lambda v: measures(v, SPACING),
        lambda v: tissue_volumes(v, SPACING),
    ):
        with pytest.raises(ValueError, match=reason):
            measure(volume)


def test_what_shows_no_anatomy_is_refused():
    volume, truth = phantom()
    with pytest.raises(ValueError, match="scale intensities"):
        measures(volume * 0.01, SPACING)
    with pytest.raises(ValueError, match="the brain has 1 intensities"):
        tissue_classes(np.ones((4, 4, 4)))
    with pytest.raises(ValueError, match="0 voxels are grey"):
        cnr(volume, np.where(truth == 3, 3, 0))
    with pytest.raises(ValueError, match="0 pairs white"):
        cnr(volume, np.where(truth == 2, 2, 0))
    with pytest.raises(ValueError, match="the brain has no voxels"):
        sharpness(volume, np.zeros(volume.shape, dtype=bool), SPACING)
    with pytest.raises(ValueError, match="sharpness needs detail"):
        sharpness(np.ones(volume.shape), truth > 0, SPACING)
    for measure in (cnr, lambda v, mask: sharpness(v, mask, SPACING)):
        with pytest.raises(ValueError, match="both on one grid"):
            measure(volume, truth[1:])
    with pytest.raises(ValueError, match="edges of 4"):
        power_spectrum(np.ones((3, 8, 8)), SPACING)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, math.inf), (-1, 1, 1)])
def test_a_spacing_that_is_none_is_refused(spacing):
    volume, truth = phantom()
    for measure in (measures, power_spectrum, lambda v, s: sharpness(v, truth > 0, s)):
        with pytest.raises(ValueError, match="spacing_mm is"):
            measure(volume, spacing)


def test_spectra_that_do_not_compare_are_refused():
    for a, b, reason in (
        (np.ones(3), np.ones(4), "give two"),
        (np.ones(0), np.ones(0), "give two"),
        (np.zeros(3), np.ones(3), "all are 0"),
        (np.array([1, np.nan]), np.ones(2), "not finite"),
    ):
        with pytest.raises(ValueError, match=reason):
            log_spectral_distance(a, b)
