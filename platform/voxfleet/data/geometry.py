"""The geometry of volumes as manifests and packages hold it, from an affine."""

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

_MIN_DETERMINANT = 0.1  # of the unit axes: 1 where they are orthogonal
_ON_A_FACE = 1e-6  # of a voxel: rounding takes in no neighbour


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


def voxels_in(box_mm: Sequence[Sequence[float]], affine: npt.ArrayLike, shape: Sequence[int]) -> tuple[slice, ...]:
    """Of each axis of a grid the voxels that have a part in a box.

    Args:
        box_mm: from and to along each RAS axis.
        affine: voxel to RAS mm, (4, 4).
        shape: of the grid.

    Raises:
        ValueError: if the box lies outside of the grid.
    """
    corners = np.stack(np.meshgrid(*box_mm, indexing="ij")).reshape(3, -1)
    inverse = np.linalg.inv(np.asarray(affine, dtype=np.float64))
    places = inverse[:3, :3] @ corners + inverse[:3, 3:] + 0.5  # a voxel's index is that of its middle
    first = np.maximum(np.floor(places.min(axis=1) + _ON_A_FACE), 0).astype(int)
    last = np.minimum(np.ceil(places.max(axis=1) - _ON_A_FACE), shape).astype(int)
    if not (first < last).all():
        raise ValueError(f"no voxel of the volumes lies in it; they reach {_reach(affine, shape)} mm")
    return tuple(slice(*ends) for ends in zip(first.tolist(), last.tolist(), strict=True))


def _reach(affine: npt.ArrayLike, shape: Sequence[int]) -> list[list[int]]:
    """From and to along each RAS axis in mm."""
    corners = nib.affines.apply_affine(affine, np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape]), axis=-1))
    return [[round(axis.min()), round(axis.max())] for axis in corners.reshape(-1, 3).T]
