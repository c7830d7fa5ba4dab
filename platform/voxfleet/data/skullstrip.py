"""Where the brain is in a head: by deepbet's network, or by a mask that is given.

deepbet (Fisch et al. 2024) is an optional package whose weights lie in its wheel; it runs on the CPU, on the threads of
the task, 4 to 7 s and 2 GB a head of 1 mm.
"""

import functools
from typing import Any

import nibabel as nib
import numpy as np

from voxfleet.errors import UserError

_PROBABILITY = 0.5  # of brain; deepbet's own default
_SAME_MM = 0.01  # affines that differ by less are the same


def check_deepbet() -> None:
    """Make sure that deepbet is there.

    Raises:
        UserError: if it is not installed.
    """
    _brain_extraction()


def deepbet_mask(data: np.ndarray) -> np.ndarray:
    """(D, H, W) bool, the brain in ``data`` (D, H, W), a T1-weighted head whose axes point nearly RAS.

    Raises:
        UserError: if deepbet is not installed, or sees no brain.
    """
    network = _brain_extraction()
    try:
        return network.postprocess(network.run_model(np.array(data, dtype=np.float32)) > _PROBABILITY).astype(bool)
    except (AssertionError, ValueError) as error:  # of an empty mask
        raise UserError("deepbet finds no brain in it; look at the image, or give a mask") from error


@functools.cache
def _brain_extraction() -> Any:
    """deepbet's two networks, loaded once a process."""
    try:
        from deepbet import BrainExtraction
    except ImportError as error:
        raise UserError("skull_strip=deepbet needs deepbet; run: pip install 'voxfleet[skullstrip]'") from error
    return BrainExtraction(no_gpu=True)


def mask_on(mask: nib.Nifti1Image, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: where ``mask`` is above 0, on the RAS-ordered grid of the image that it belongs to.

    Args:
        mask: brain mask, its axes ordered nearest to RAS.
        shape: (D, H, W) of the image, whose axes are ordered nearest to RAS.
        affine: (4, 4) of the image, mm.

    Raises:
        UserError: if it lies on another grid, or is empty.
    """
    grids = f"{'x'.join(map(str, mask.shape))} voxels for an image of {'x'.join(map(str, shape))}"
    if mask.shape[:3] != shape or mask.shape[3:] not in ((), (1,)):
        raise UserError(f"the brain mask has {grids}; resample it to the image's grid")
    if not np.allclose(mask.affine, affine, atol=_SAME_MM):
        raise UserError("the brain mask lies elsewhere (its affine differs); resample it to the image's grid")
    inside = np.asarray(mask.dataobj).reshape(shape) > 0
    if not inside.any():
        raise UserError("the brain mask is empty; make it again")
    return inside
