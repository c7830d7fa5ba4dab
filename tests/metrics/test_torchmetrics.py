"""KID, Frechet distance, SSIM and MS-SSIM against torchmetrics.

Its Gaussian window of sigma 1.5 is 11 voxels wide, and it has windows beyond the border; ours has 7, and none there.
So ours is given its width here, and what it found beyond the border is left out.
"""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from voxfleet.metrics import image, scores
from voxfleet.metrics.distances import Moments, frechet, kernel_matrix, mmd2
from voxfleet.metrics.image import ssim
from voxfleet.metrics.scores import ms_ssim

WINDOW = 11


@pytest.fixture
def sets():
    """Features of two sets, (n, d) float64."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((40, 12)), 0.5 + 1.3 * rng.standard_normal((40, 12))


def test_kid(sets):
    kernels = [kernel_matrix(x[:, None], y[:, None]) for x, y in ((sets[0], sets[0]), (sets[1], sets[1]), sets)]
    theirs = poly_mmd(*map(torch.from_numpy, sets))
    assert mmd2(*kernels) == pytest.approx(float(theirs), rel=1e-9)


def test_frechet_distance(sets):
    moments = [Moments.of(values) for values in sets]
    means = [torch.from_numpy(one.mean) for one in moments]
    covariances = [torch.from_numpy(one.covariance) for one in moments]
    theirs = _compute_fid(means[0], covariances[0], means[1], covariances[1])
    assert frechet(*moments) == pytest.approx(float(theirs), rel=1e-9)


@pytest.fixture
def volumes(monkeypatch):
    """Two batches of volumes, (2, 1, D, H, W), of which one is the other with noise."""
    for module in (image, scores):
        monkeypatch.setattr(module, "_WINDOW", WINDOW)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 24, 26, 28, generator=draw, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    return x, (x + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1, 1) * noise).clamp(0, 1)


def theirs(x, y, **wanted):
    """SSIM of all windows, or, within the border, its mean over the volume of the contrast."""
    return structural_similarity_index_measure(x, y, data_range=1.0, sigma=1.5, reduction="none", **wanted)[1]


def within(windows):
    edge = WINDOW // 2
    return windows[..., edge:-edge, edge:-edge, edge:-edge].mean(dim=(1, 2, 3, 4))


def test_ssim(volumes):
    found = ssim(*volumes).double()
    torch.testing.assert_close(found, within(theirs(*volumes, return_full_image=True)), rtol=1e-4, atol=0)
    assert found.diff().abs() > 0.1  # of the two volumes


def test_ms_ssim(volumes):
    fine = theirs(*volumes, return_contrast_sensitivity=True)
    coarse = within(theirs(*(torch.nn.functional.avg_pool3d(v, 2) for v in volumes), return_full_image=True))
    weights = np.array(scores._SCALE_WEIGHTS[:2]) / sum(scores._SCALE_WEIGHTS[:2])
    wanted = fine ** weights[0] * coarse ** weights[1]
    torch.testing.assert_close(ms_ssim(*volumes).double(), wanted, rtol=1e-4, atol=0)
