"""The position of an image in the world: choice between sform and qform, units, plausibility."""

from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from voxfleet.errors import UserError

Orientation = Literal["sform", "qform"]
VOXEL_MM = (0.05, 20.0)  # sizes that a voxel of a head may have
UNITS_CONVERTED = "metres or micrometres converted to mm"
UNITS_IGNORED = "unit code ignored, as only mm give the size of a head"
ROTATED = "sform and qform turned against each other (the sform counts)"
_UNIT_BITS = 0b111  # of xyzt_units; the others are those of time
_MM = {1: 1000.0, 3: 0.001}  # metres and micrometres, by the codes of NIfTI
_MIN_AXES_VOLUME = 0.1  # how far from flat (0) or orthogonal (1) the axes must be
_MIN_ROTATION_DEGREES = 1.0


def to_ras(image: nib.Nifti1Image, orientation: Orientation | None) -> tuple[nib.Nifti1Image, list[str]]:
    """``image`` with its axes in the order and direction nearest to RAS, its affine in mm; and notes about it.

    The unit code counts where it gives voxels of a plausible size (``VOXEL_MM``); else the numbers are mm.

    Args:
        image: may be 3-D or more, and is not changed.
        orientation: which of the two affines is right where they differ; null takes the sform, and refuses images whose
            affines contradict each other about left and right.

    Raises:
        UserError: if left and right are unknown, or the affine is no geometry of a head.
    """
    affine, notes = _chosen(image.header, orientation)
    unit = _MM.get(int(image.header["xyzt_units"]) & _UNIT_BITS)
    if unit:
        scaled = np.diag([unit, unit, unit, 1.0]) @ affine
        affine, note = (scaled, UNITS_CONVERTED) if _is_plausible(scaled) else (affine, UNITS_IGNORED)
        notes.append(note)
    _check(affine)
    return nib.as_closest_canonical(type(image)(image.dataobj, affine, image.header)), notes


def _chosen(header: nib.Nifti1Header, orientation: Orientation | None) -> tuple[np.ndarray, list[str]]:
    """The (4, 4) affine that counts, and a list of notes."""
    if not header["sform_code"] and not header["qform_code"]:
        # nibabel would guess; a wrong guess swaps left and right, which decides on which side an epilepsy is
        raise UserError("the header has neither sform nor qform, so left and right are unknown; set the sform code")
    sform = header.get_sform(coded=True)[0]
    try:
        qform = header.get_qform(coded=True)[0]
    except ValueError:  # of a quaternion that is no rotation, beside an sform
        qform = None
    affines = {"sform": sform, "qform": qform}
    if orientation and affines[orientation] is not None:
        return affines[orientation], []
    if not (_is_grid(sform) and _is_grid(qform)):
        return (qform if sform is None else sform), []
    if _contradict(sform, qform):
        raise UserError(
            "sform and qform contradict each other about left and right; find out which is right, and set "
            "source.orientation to it (sform or qform)"
        )
    return sform, [ROTATED] if _degrees_between(sform, qform) > _MIN_ROTATION_DEGREES else []


def _axes(affine: np.ndarray) -> np.ndarray:
    """(3, 3): the directions of the voxel axes in the world, as columns of length 1."""
    return affine[:3, :3] / voxel_sizes(affine)


def _contradict(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether one affine mirrors what the other shows, or turns right to left."""
    axes_a, axes_b = _axes(a), _axes(b)
    return bool(np.linalg.det(axes_a) * np.linalg.det(axes_b) < 0 or axes_a[0] @ axes_b[0] < 0)


def _degrees_between(a: np.ndarray, b: np.ndarray) -> float:
    """The angle of the rotation from one affine's axes to the other's."""
    cosine = (np.trace(_axes(a) @ _axes(b).T) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _is_grid(affine: np.ndarray | None) -> bool:
    """Whether there is such an affine, and its axes span a volume."""
    if affine is None or not np.isfinite(affine).all() or not voxel_sizes(affine).all():
        return False
    return bool(abs(np.linalg.det(_axes(affine))) >= _MIN_AXES_VOLUME)


def _is_plausible(affine: np.ndarray) -> bool:
    """Whether the sizes of the voxels (mm) are those of a head's image; not so for NaN."""
    low, high = VOXEL_MM
    return all(low <= size <= high for size in voxel_sizes(affine))


def _check(affine: np.ndarray) -> None:
    low, high = VOXEL_MM
    if not _is_plausible(affine):
        listed = " x ".join(f"{size:g}" for size in voxel_sizes(affine))
        raise UserError(f"the affine gives voxels of {listed} mm, outside {low:g}-{high:g} mm; correct the header")
    if not _is_grid(affine):
        raise UserError("the affine is degenerate (its axes lie in one plane, or it is not finite); correct the header")
