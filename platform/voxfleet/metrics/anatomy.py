"""Anatomy of one volume: tissues, contrast, symmetry, sharpness, spectrum; and what hippocampal volumes say.

Volumes are (D, H, W) skull-stripped T1-weighted heads, intensities in [0, 1], background 0, axes right, anterior and
superior; spacing is in mm along each axis.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage

_BRAIN = 0.1  # the darkest fluid lies above, what a decoder leaves around a head below
_BINS = 256  # of the histogram that the tissues are told by
_FLAT = 1e-10  # a smaller variance is rounding
_FLOOR = 1e-12  # of the largest power: what lies below is rounding
_DEEP_MM = 15
_WINDOW_MM = 12  # smoothness of the window of the sharpness
_COARSEST_MM = 50  # longest period that counts for the sharpness
CSF, GREY, WHITE = 1, 2, 3
MEASURES = ("csf_ml", "grey_ml", "white_ml", "ventricles_ml", "cnr", "symmetry", "sharpness")


def measures(volume: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """All figures below that need no labels, by name.

    Returns:
        ``csf_ml``, ``grey_ml``, ``white_ml``, ``ventricles_ml``, ``cnr``, ``symmetry`` and ``sharpness``.

    Raises:
        ValueError: if it is no volume, not finite, or shows no brain of three tissues.
    """
    classes = tissue_classes(volume)
    return {
        **tissue_volumes(classes, spacing_mm),
        "ventricles_ml": ventricles(classes, spacing_mm),
        "cnr": cnr(volume, classes),
        "symmetry": symmetry(volume),
        "sharpness": sharpness(volume, classes > 0, spacing_mm),
    }


def brain_mask(volume: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: the largest connected piece above 0.1, with its holes filled (dark ventricles).

    Raises:
        ValueError: if it is no volume, not finite, or nothing lies above.
    """
    _check_volume(volume)
    pieces, _ = ndimage.label(volume > _BRAIN)
    sizes = np.bincount(pieces.ravel())[1:]
    if not sizes.size:
        raise ValueError(f"no voxel is above {_BRAIN}, the largest is {volume.max():.3g}; scale intensities to [0, 1]")
    return ndimage.binary_fill_holes(pieces == sizes.argmax() + 1)


def tissue_classes(volume: np.ndarray) -> np.ndarray:
    """(D, H, W) uint8: 0 outside the brain, 1 fluid (CSF), 2 grey, 3 white matter, by intensity alone.

    The two limits are those of Otsu, "A threshold selection method from gray-level histograms" (1979), with three
    classes: the best of all pairs of limits, so that there is no start to choose, as k-means has, and blurred or noisy
    volumes are still cut alike (a Gaussian mixture is not stable on them). Voxels that hold two tissues go to the
    nearer, so that on simulated heads of 2.5 mm fluid is found too large by up to two thirds and grey matter too small
    by up to a fifth: compare sets that are measured alike, not with other software.

    Raises:
        ValueError: as ``brain_mask``, or if the brain has fewer than three intensities.
    """
    brain = brain_mask(volume)
    limits = _otsu_limits(np.clip(volume[brain], 0, 1))
    classes = np.zeros(volume.shape, dtype=np.uint8)
    classes[brain] = CSF + np.digitize(volume[brain], limits)
    return classes


def _otsu_limits(values: np.ndarray) -> tuple[float, float]:
    """The limits between three classes of ``values`` (in [0, 1]) that leave the least variance within them."""
    counts, edges = np.histogram(values, bins=_BINS, range=(0, 1))
    if np.count_nonzero(counts) < 3:
        raise ValueError(f"the brain has {np.count_nonzero(counts)} intensities; three tissues need three or more")
    below = np.concatenate([[0], counts.cumsum()])
    mass = np.concatenate([[0], (counts * (edges[1:] + edges[:-1]) / 2).cumsum()])

    def between(start: np.ndarray | int, stop: np.ndarray | int) -> np.ndarray:  # variance of the mean, unnormalised
        number = below[stop] - below[start]
        return (mass[stop] - mass[start]) ** 2 / np.maximum(number, 1)

    first, second = np.triu_indices(_BINS, k=1)
    best = np.argmax(between(0, first) + between(first, second) + between(second, _BINS))
    return float(edges[first[best]]), float(edges[second[best]])


def tissue_volumes(classes: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """``csf_ml``, ``grey_ml`` and ``white_ml`` of a map of ``tissue_classes``.

    Raises:
        ValueError: if it is no volume or the spacing is not three positive numbers.
    """
    _check_volume(classes)
    voxel_ml = math.prod(_spacing(spacing_mm)) / 1000
    names = {"csf_ml": CSF, "grey_ml": GREY, "white_ml": WHITE}
    return {name: float(np.count_nonzero(classes == tissue) * voxel_ml) for name, tissue in names.items()}


def ventricles(classes: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Fluid that lies more than 15 mm below the surface of the brain (ml): the ventricles, with what is near them.

    Args:
        classes: map of ``tissue_classes``.
        spacing_mm: voxel size.

    Raises:
        ValueError: as ``tissue_volumes``.
    """
    _check_volume(classes)
    spacing = _spacing(spacing_mm)
    depth = ndimage.distance_transform_edt(classes > 0, sampling=spacing)
    inside = (classes == CSF) & (depth > _DEEP_MM)
    return float(np.count_nonzero(inside) * math.prod(spacing) / 1000)


def cnr(volume: np.ndarray, classes: np.ndarray) -> float:
    """Contrast to noise: mean white less mean grey matter, in units of the noise; infinite without any.

    Noise is told by the differences of neighbouring voxels inside white matter, 1.48 times their median over the root
    of 2, and not by the spread of the classes: that is set by the limits between them and hardly depends on noise.

    Args:
        volume: (D, H, W).
        classes: its ``tissue_classes``.

    Raises:
        ValueError: if the shapes differ, or there is no grey matter or no white voxel beside another.
    """
    _check_volume(volume)
    _check_shapes(volume, classes)
    white, grey = classes == WHITE, volume[classes == GREY]
    steps = [np.diff(volume, axis=axis)[_both(white, axis)] for axis in range(3)]
    differences = np.abs(np.concatenate(steps, dtype=np.float64))
    if not grey.size or not differences.size:
        raise ValueError(f"{grey.size} voxels are grey, {differences.size} pairs white; contrast needs some of both")
    noise = 1.4826 * float(np.median(differences)) / math.sqrt(2)
    contrast = float(volume[white].mean(dtype=np.float64) - grey.mean(dtype=np.float64))
    return contrast / noise if noise > 0 else math.inf


def _both(mask: np.ndarray, axis: int) -> np.ndarray:
    """Where a voxel and the next along ``axis`` are in ``mask``."""
    along = np.moveaxis(mask, axis, 0)
    return np.moveaxis(along[1:] & along[:-1], 0, axis)


def symmetry(volume: np.ndarray) -> float:
    """Pearson correlation with the mirror image, left for right about the middle of the array; 0 if constant.

    Raises:
        ValueError: if it is no volume or not finite.
    """
    _check_volume(volume)
    centred = volume - volume.mean(dtype=np.float64).astype(volume.dtype)  # the mirror image has the same moments
    variance = float((centred * centred).sum(dtype=np.float64))
    if variance <= _FLAT * volume.size:
        return 0.0
    return float((centred * centred[::-1]).sum(dtype=np.float64)) / variance


def sharpness(volume: np.ndarray, brain: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Share (0 to 1) of the brain's spectral energy that lies in the upper half of the frequencies of the grid.

    Pertuz et al., "Analysis of focus measure operators for shape-from-focus" (2013), compare high with low frequencies
    by wavelets (their WAVR); here they are those of the power spectrum, of periods up to 50 mm, so that the shape of
    the head does not count. Gain and offset cancel. The window is 1/256 at the brain's surface and 1/4 at 12 mm below,
    which hides the edge of the mask and what blur makes of it. Blur lowers the share; noise raises it, and lowers
    ``cnr``. Compare volumes of one grid, as the upper half depends on it.

    Args:
        volume: (D, H, W).
        brain: (D, H, W) bool.
        spacing_mm: voxel size.

    Raises:
        ValueError: if the shapes differ, there is no brain, or nothing in it varies.
    """
    _check_volume(volume)
    _check_shapes(volume, brain)
    if not brain.any():
        raise ValueError("the brain has no voxels; give a mask of it")
    sigma = [_WINDOW_MM / step for step in _spacing(spacing_mm)]
    window = brain * ndimage.gaussian_filter(brain.astype(np.float32), sigma, mode="constant") ** 8
    detail = (volume - np.average(volume, weights=window)) * window
    found, power = power_spectrum(detail, spacing_mm)
    energy = power * found**2  # of all frequencies of a bin: their number grows with the square
    total = energy[found >= 1 / _COARSEST_MM].sum()
    if not total or np.square(detail).sum() <= _FLAT * np.square(window).sum():
        raise ValueError("the brain is constant or the voxels are too coarse; sharpness needs detail below 50 mm")
    return float(energy[found > found[-1] / 2].sum() / total)


def power_spectrum(volume: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Mean power by spatial frequency, whatever its direction: what blur, noise and checkerboards change.

    Bin k holds the frequencies from k - 1/2 to k + 1/2 periods in the shortest edge, from k = 1 to what the coarsest
    axis can show; the mean of the volume is left out.

    Returns:
        Frequencies of the bins (periods per mm), and the mean power of a frequency in each.

    Raises:
        ValueError: if it is no volume or not finite, has an edge below 4 voxels, or the spacing is not three positive
            numbers.
    """
    _check_volume(volume)
    if min(volume.shape) < 4:
        raise ValueError(f"the volume is {volume.shape}; a spectrum needs edges of 4 voxels or more")
    spacing = _spacing(spacing_mm)
    found = frequencies(volume.shape, spacing)
    edge_mm, last = 1 / found[0], len(found)
    axes = [np.fft.fftfreq(n, step) for n, step in zip(volume.shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    bins = np.rint(np.sqrt(x**2 + y**2 + z**2) * edge_mm).astype(np.int64)
    power = np.square(np.abs(fft.fftn(volume.astype(np.float64)) / volume.size))
    total, number = np.bincount(bins.ravel(), power.ravel()), np.bincount(bins.ravel())
    return found, total[1 : last + 1] / number[1 : last + 1]


def frequencies(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """The frequencies (periods per mm) of the bins of :func:`power_spectrum`, for volumes of this shape and spacing.

    Raises:
        ValueError: if the spacing is not three positive numbers.
    """
    spacing = _spacing(spacing_mm)
    edge_mm = min(n * step for n, step in zip(shape, spacing, strict=True))
    last = int(edge_mm / (2 * max(spacing)) + 1e-9)
    return np.arange(1, last + 1) / edge_mm


def log_spectral_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference (dB) of two power spectra on the same bins; twice the contrast is 6 dB.

    Args:
        a: (bins,), power, such as the mean over a set.
        b: (bins,).

    Raises:
        ValueError: if they differ in length, or a power is negative or not finite, or all are 0.
    """
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"spectra are {a.shape} and {b.shape}; give two of the same volumes' shape and spacing")
    if not all(np.isfinite(power).all() and power.min() >= 0 and power.max() > 0 for power in (a, b)):
        raise ValueError("a power is negative or not finite, or all are 0; leave such volumes out")
    decibel = [10 * np.log10(np.maximum(power, _FLOOR * power.max())) for power in (a, b)]
    return float(np.sqrt(np.square(decibel[0] - decibel[1]).mean()))


def hippocampal_figures(volumes_ml: np.ndarray) -> dict[str, list[float]]:
    """What the volumes (ml) of the left and the right hippocampus of n people say, each (n,).

    Epilepsy shrinks one of them, whichever it is; so what tells it is their absolute asymmetry, 2 |L - R| / (L + R),
    from 0 to 2, and the volume of the smaller one.

    Args:
        volumes_ml: (n, 2); NaN where a volume is not known.

    Returns:
        ``hippocampi_ml`` (both), ``hippocampus_smaller_ml`` and ``hippocampus_asymmetry``, which is NaN where there is
        no hippocampus at all.
    """
    left, right = np.asarray(volumes_ml, dtype=np.float64).T
    both = left + right
    with np.errstate(invalid="ignore", divide="ignore"):
        asymmetry = 2 * np.abs(left - right) / both
    figures = {"hippocampi_ml": both, "hippocampus_smaller_ml": np.minimum(left, right)}
    return {name: values.tolist() for name, values in {**figures, "hippocampus_asymmetry": asymmetry}.items()}


def _check_volume(volume: np.ndarray) -> None:
    if volume.ndim != 3 or not volume.size:
        raise ValueError(f"the volume is {volume.shape}; give (D, H, W) that is not empty")
    if not np.isfinite(volume).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(volume))} voxels are not finite; leave this volume out")


def _check_shapes(volume: np.ndarray, mask: np.ndarray) -> None:
    if mask.shape != volume.shape:
        raise ValueError(f"the volume is {volume.shape}, its map {mask.shape}; give both on one grid")


def _spacing(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != 3 or not all(0 < step < math.inf for step in spacing):
        raise ValueError(f"spacing_mm is {spacing}; give three positive numbers (mm)")
    return spacing
