"""One head to one volume of the cohort: RAS, the configured grid, intensities in [0, 1].

The source is interpolated once, straight onto the target grid: target voxel -> world (mm) -> source voxel. So the
affine of the result is exact: a point of the head keeps its world position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.spaces import vox2out_vox
from scipy import ndimage

from voxfleet.data.background import PADDING, air_level, background_threshold, faces, without_padding
from voxfleet.data.orientation import VOXEL_MM, Orientation, to_ras
from voxfleet.data.skullstrip import deepbet_mask, mask_on
from voxfleet.errors import UserError

# A slice belongs to the head if it holds this share of what the fullest slice of its axis holds: specks of noise and
# the tips of ears do not move the box.
_SLICE_FRACTION = 0.02
# From the crown to below the cerebellum; what is further down is neck, of which scans show more or less (FSL's
# robustfov takes 170 mm as well).
_HEAD_HEIGHT_MM = 170.0
_BOX_MM = 3.0  # how finely that is measured: its centre is good to a millimetre
_DARKEST_BRAIN = 0.5  # percentile of the brain's intensities: what is darker is an outlier
_LABELS = 1002  # NIfTI's intent code of label maps
_WRAPPED = 0.9  # of a signed type's range on both sides: intensities that did not fit were wrapped


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """The grid and the intensities of the training volumes.

    Args:
        spacing_mm: Voxel size along right, anterior and superior, in mm.
        shape: Voxels along the same axes; every volume of the cohort has this shape.
        percentiles: Percentiles of the head's intensities that become 0 and 1; what lies outside is clipped.
        center: What stands at the centre of the grid. With head, each head's own (for images in scanner space); with
            world, the point world_center_mm (for images that are registered to one space, such as MNI).
        world_center_mm: Centre of the grid in mm for center world; the default is the centre of the ICBM152 brain.
        skull_strip: How the brain is cut out: none (the images show brains alone), deepbet (a network; needs
            voxfleet[skullstrip]), or masks, which the source names.
    """

    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    shape: tuple[int, int, int] = (80, 96, 80)
    percentiles: tuple[float, float] = (0.5, 99.5)
    center: Literal["head", "world"] = "head"
    world_center_mm: tuple[float, float, float] = (0.0, -17.0, 5.0)
    skull_strip: Literal["none", "deepbet", "masks"] = "none"

    def __post_init__(self) -> None:
        low, high = VOXEL_MM
        if len(self.spacing_mm) != 3 or not all(low <= spacing <= high for spacing in self.spacing_mm):
            raise ValueError(f"spacing_mm={self.spacing_mm} must be three numbers from {low} to {high}")
        if len(self.shape) != 3 or min(self.shape) < 2:
            raise ValueError(f"shape={self.shape} must be three whole numbers above 1")
        if len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles={self.percentiles} must be two rising numbers from 0 to 100")
        if self.center not in ("head", "world"):
            raise ValueError(f"center={self.center!r} must be head or world")
        if len(self.world_center_mm) != 3 or not all(map(math.isfinite, self.world_center_mm)):
            raise ValueError(f"world_center_mm={self.world_center_mm} must be three numbers")
        if self.skull_strip not in ("none", "deepbet", "masks"):
            raise ValueError(f"skull_strip={self.skull_strip!r} must be none, deepbet or masks")


@dataclass(frozen=True, eq=False)
class Volume:
    """A preprocessed head; nothing else of the source file, whose header may name the patient.

    Attributes:
        data: (D, H, W) float32 in [0, 1], background 0; the axes point right, anterior and superior.
        affine: (4, 4) float64, voxel to world, mm.
        notes: kinds of repair that the image needed (``background.PADDING``, ``orientation.UNITS``, ...).
    """

    data: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...] = ()


def preprocess(
    image: nib.Nifti1Image,
    config: PreprocessConfig,
    mask: nib.Nifti1Image | None = None,
    orientation: Orientation | None = None,
) -> Volume:
    """``image`` on the configured grid, with intensities in [0, 1].

    NaN around the head is background, as SPM writes it; NaN inside it, and infinities, are refused. Padding far below
    the image's own range is set to air.

    Args:
        image: the head.
        config: what to do with it.
        mask: the brain on the image's grid, for skull_strip masks.
        orientation: see ``orientation.to_ras``.

    Raises:
        UserError: if this image cannot be used (one line; the caller adds whose it is): not 3-D, not of real numbers,
            an unknown or degenerate geometry, constant, holes of NaN, no brain found, no head in the grid.
    """
    _check_voxels(image)
    is_scaled = getattr(image.dataobj, "slope", 1) != 1 or getattr(image.dataobj, "inter", 0) != 0
    image, notes = to_ras(image, orientation)
    data = _load(image)
    if not is_scaled:
        _check_range(data, image.get_data_dtype())
    data, has_padding = without_padding(_without_nan(data))
    source_affine = image.affine
    data = _strip(data, source_affine, config, mask and _mask_to_ras(mask, orientation))
    _, darkest = background_threshold(data)
    spacing = voxel_sizes(source_affine)
    sigma = _antialias_sigma(spacing, config.spacing_mm)
    data = ndimage.gaussian_filter(np.maximum(data, darkest), sigma, mode="nearest")
    threshold, _ = background_threshold(data)  # lower than before, as there is less noise
    in_scanner = config.center == "head"
    affine = grid_affine(config, head_center(data, source_affine, threshold) if in_scanner else config.world_center_mm)
    resampled = _resample(data, source_affine, affine, config.shape)
    volume = _normalise(resampled, threshold, config.percentiles)
    return Volume(volume, affine, (*notes, *[PADDING] * has_padding))


def grid_affine(config: PreprocessConfig, center_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """(4, 4) affine of the RAS grid of ``config`` whose centre stands at the world point ``center_mm``."""
    spacing = np.asarray(config.spacing_mm, dtype=np.float64)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.asarray(center_mm) - spacing * (np.asarray(config.shape) - 1) / 2
    return affine


def common_affine(config: PreprocessConfig, affines: Sequence[np.ndarray]) -> np.ndarray:
    """The one (4, 4) affine that stands for a cohort: for its manifest, and for the volumes generated from it.

    With center world it is every volume's own. With center head the volumes differ by a shift, as their heads lie
    differently in the scanner, and this is their mean. Pass the affines of the training split: it is a statistic.

    Raises:
        ValueError: if ``affines`` is empty.
    """
    if not len(affines):
        raise ValueError("affines is empty: a cohort needs at least one volume")
    if config.center == "world":
        return grid_affine(config, config.world_center_mm)
    middle = [*((np.asarray(config.shape) - 1) / 2), 1.0]
    return grid_affine(config, np.mean([affine @ middle for affine in affines], axis=0)[:3])


def head_center(data: np.ndarray, affine: np.ndarray, threshold: float) -> np.ndarray:
    """World point (mm) at the centre of the box around the head, the box along the world's axes.

    The box and not the centre of mass, because the grid has to hold the brain's ends, and mass lies high in the
    cerebrum; measured down from the crown, because scans show more or less neck.

    Args:
        data: (D, H, W) intensities, some of them above ``threshold``.
        affine: (4, 4) of ``data``, mm; it may be oblique.
        threshold: What lies below is background.
    """
    shape, aligned = vox2out_vox((data.shape, affine), (_BOX_MM,) * 3)
    foreground = _resample(data, affine, aligned, shape) > threshold
    bottom, top = _extent(foreground, 2)
    bottom = max(bottom, top - _HEAD_HEIGHT_MM / _BOX_MM)
    head = foreground[:, :, math.ceil(bottom) : math.ceil(top) + 1]
    box = np.array([_extent(head, 0), _extent(head, 1), (bottom, top)])
    return apply_affine(aligned, box.mean(axis=1))


def _check_voxels(image: nib.Nifti1Image) -> None:
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise UserError(f"the image is not one 3-D volume, its shape is {image.shape}; give one 3-D image a subject")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UserError(f"the voxels are {dtype}, not real numbers; give a magnitude image")
    if image.header["intent_code"] == _LABELS:
        raise UserError("the header says that the voxels are labels; give an image with intensities")


def _load(image: nib.Nifti1Image) -> np.ndarray:
    """Scaled float32 (D, H, W) voxels."""
    with np.errstate(over="ignore"):  # to infinity, which is refused
        return image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:3])


def _check_range(data: np.ndarray, dtype: np.dtype) -> None:
    """Raises UserError if ``data``, voxels as they are stored, fill a small signed type on both sides."""
    if dtype.kind == "i" and dtype.itemsize <= 2:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if data.min() < _WRAPPED * low and data.max() > _WRAPPED * high:
            raise UserError(
                f"the voxels fill the range of {dtype} from {data.min():g} to {data.max():g}: intensities that did not "
                "fit were wrapped to negative ones; convert the image again, to an unsigned type or float32"
            )


def _mask_to_ras(mask: nib.Nifti1Image, orientation: Orientation | None) -> nib.Nifti1Image:
    try:
        return to_ras(mask, orientation)[0]
    except UserError as error:
        raise UserError(f"the brain mask: {error}") from error


def _strip(data: np.ndarray, affine: np.ndarray, config: PreprocessConfig, mask: nib.Nifti1Image | None) -> np.ndarray:
    """``data`` (D, H, W) with everything but the brain as dark as air, or as the darkest brain where that is darker."""
    if config.skull_strip == "none":
        return data
    if config.skull_strip == "deepbet":
        brain = deepbet_mask(data)
    elif mask is not None:
        brain = mask_on(mask, data.shape, affine)
    else:
        raise UserError("it has no brain mask; name one, or use another skull_strip")
    dark = min(air_level(data), float(np.percentile(data[brain], _DARKEST_BRAIN)))
    return np.where(brain, np.maximum(data, dark), np.float32(dark))


def _without_nan(data: np.ndarray) -> np.ndarray:
    """``data`` with the NaN around the head replaced by a value as dark as its darkest voxels."""
    if np.isinf(data).any():
        raise UserError("the image has infinite voxels; make it again from the source")
    missing = np.isnan(data)
    if not missing.any():
        return data
    if missing.all():
        raise UserError("all voxels are NaN; make the image again from the source")
    regions, count = ndimage.label(missing)
    at_border = np.unique(np.concatenate([face.ravel() for face in faces(regions)]))
    if count > np.count_nonzero(at_border):
        raise UserError("there are NaN voxels inside the head; repair them or make the image again from the source")
    return np.where(missing, np.percentile(data[~missing], 0.1).astype(np.float32), data)  # no single outlier


def _antialias_sigma(source_mm: Sequence[float], target_mm: Sequence[float]) -> list[float]:
    """Gaussian sigma along each axis, in source voxels, that makes the source as blurred as the target's voxels.

    The difference of the two point spreads, whose full widths at half maximum are the voxel sizes (Cardoso et al.,
    MICCAI 2015); 0 along an axis that is not made coarser.
    """
    factors = np.asarray(target_mm) / np.asarray(source_mm)
    return list(np.sqrt(np.maximum(factors**2 - 1, 0) / (8 * math.log(2))))


def _extent(foreground: np.ndarray, axis: int) -> tuple[float, float]:
    """Where the head begins and ends along ``axis``, in fractions of a slice: a scan's noise moves them little."""
    counts = foreground.sum(axis=tuple({0, 1, 2} - {axis}))
    limit = max(_SLICE_FRACTION * counts.max(), 1)
    return _crossing(counts, limit), len(counts) - 1 - _crossing(counts[::-1], limit)


def _crossing(counts: np.ndarray, limit: float) -> float:
    """Where ``counts``, linear between its points, first reaches ``limit``."""
    first = int(np.argmax(counts >= limit))
    return first - float((counts[first] - limit) / (counts[first] - counts[first - 1])) if first else 0.0


def _resample(data: np.ndarray, source: np.ndarray, target: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(D, H, W) of ``shape``: ``data`` with affine ``source``, read at the voxels of ``target``."""
    matrix = np.linalg.inv(source) @ target
    # Linear, because splines ring beside the skull. "grid-constant", because with "constant" a rounding error beyond
    # the last voxel makes it background.
    return ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1, mode="grid-constant", cval=float(data.min())
    )


def _normalise(data: np.ndarray, threshold: float, percentiles: tuple[float, float]) -> np.ndarray:
    """``data`` scaled to [0, 1] by percentiles of its foreground; all background becomes 0."""
    foreground = data[data > threshold]
    if not foreground.size:
        raise UserError("no head lies in the grid; use center=head, or correct the affine or world_center_mm")
    low, high = np.percentile(foreground, percentiles)
    if low == high:
        raise UserError(f"the head is constant ({low:g} everywhere); give an image with intensities, not a mask")
    # low is above the threshold, so the background falls below 0 and is clipped
    return np.clip((data - low) / (high - low), 0, 1).astype(np.float32)
