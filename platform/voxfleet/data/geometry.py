"""The geometry of volumes as manifests and packages hold it, from an affine."""

from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

_MIN_DETERMINANT = 0.1  # of the unit axes: 1 where they are orthogonal


def geometry_of(affine: npt.ArrayLike) -> dict[str, Any]:
    """The geometry of a grid with this (4, 4) voxel-to-RAS-mm affine; orientation is such as RAS, mirror_axis null.

    Raises:
        ValueError: if it is not an affine of a grid.
    """
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or affine[3].tolist() != [0, 0, 0, 1]:
        raise ValueError("it must be four rows of four numbers, the last 0, 0, 0, 1")
    spacing = voxel_sizes(affine)
    if not spacing.all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < _MIN_DETERMINANT:
        raise ValueError("its axes have no length, or lie in one plane")
    return {
        "affine": affine.tolist(),
        "spacing_mm": spacing.tolist(),
        "orientation": "".join(nib.aff2axcodes(affine)),
        "mirror_axis": None,  # what a mirrored volume means, only the cohort's owner knows
    }
