"""How near a volume is to another: PSNR and SSIM, of volumes whose intensities span [0, 1]."""

from torch import Tensor

_WINDOW = 7  # voxels; 11, the usual, leaves little of an edge of 32


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (dB) of each volume, (B,): 10 log10(1 / mean squared error); infinite where equal.

    Args:
        x: (B, 1, D, H, W).
        y: like ``x``.

    Raises:
        ValueError: if the shapes differ.
    """
    _check(x, y)
    return -10 * (x.float() - y.float()).square().flatten(1).mean(dim=1).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each volume, (B,): the mean over all windows of 7^3 voxels that lie inside it.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), with the Gaussian
    window (sigma 1.5) and constants of that paper, in three dimensions. Windows of background alone count 1.

    Args:
        x: (B, 1, D, H, W), edges of 7 or more.
        y: like ``x``.

    Raises:
        ValueError: if the shapes differ, or an edge is too short.
    """
    _check(x, y)
    if min(x.shape[2:]) < _WINDOW:
        raise ValueError(f"volumes are {tuple(x.shape[2:])}; each edge must have at least {_WINDOW} voxels")
    from monai.metrics import SSIMMetric  # MONAI takes seconds to import

    metric = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=_WINDOW, reduction="none")
    return metric(x.float(), y.float()).flatten()


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 5:
        raise ValueError(f"volumes are {tuple(x.shape)} and {tuple(y.shape)}; both must be the same (B, 1, D, H, W)")
