import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from voxfleet.metrics.image import psnr, ssim


def pair(shape: tuple[int, int, int] = (12, 10, 9)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(3, 1, *shape, generator=generator)
    noise = torch.randn(y.shape, generator=generator) * torch.tensor([0.01, 0.05, 0.2]).view(3, 1, 1, 1, 1)
    return y + noise, y


def test_psnr_of_a_known_error() -> None:
    y = torch.rand(2, 1, 8, 8, 8)
    x = y + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 40.0]), rtol=0, atol=0.01)


def test_psnr_is_each_volumes_own() -> None:
    x, y = pair()
    expected = [10 * math.log10(1 / float(((a - b) ** 2).mean())) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(psnr(x, y), torch.tensor(expected), rtol=1e-4, atol=1e-3)
    assert math.isinf(psnr(y, y)[0])


def test_ssim_is_that_of_the_paper() -> None:
    """Against equation 13 written out with scipy: Gaussian window of 7 (sigma 1.5), valid region, K = (.01, .03)."""
    x, y = pair()
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / 1.5) ** 2)
    kernel /= kernel.sum()

    def local_mean(a: np.ndarray) -> np.ndarray:
        for axis in range(3):
            a = correlate1d(a, kernel, axis=axis)
        return a[3:-3, 3:-3, 3:-3]

    for mine, a, b in zip(ssim(x, y), x.double().numpy()[:, 0], y.double().numpy()[:, 0], strict=True):
        ma, mb = local_mean(a), local_mean(b)
        va, vb, cov = local_mean(a * a) - ma**2, local_mean(b * b) - mb**2, local_mean(a * b) - ma * mb
        index = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        assert mine.item() == pytest.approx(index.mean(), abs=1e-4)


def test_ssim_orders_by_damage() -> None:
    x, y = pair()
    a, b, c = ssim(x, y).tolist()
    assert 1 > a > b > c
    torch.testing.assert_close(ssim(y, y), torch.ones(3))
    torch.testing.assert_close(ssim(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8)), torch.ones(1))


def test_half_precision_is_measured_in_float32() -> None:
    x, y = pair()
    assert psnr(x.bfloat16(), y).dtype == ssim(x.bfloat16(), y).dtype == torch.float32


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_refuses_other_shapes(measure) -> None:
    with pytest.raises(ValueError, match="must be the same"):
        measure(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 9))
    with pytest.raises(ValueError, match="must be the same"):
        measure(torch.zeros(8, 8, 8), torch.zeros(8, 8, 8))


def test_ssim_refuses_a_short_edge() -> None:
    with pytest.raises(ValueError, match="at least 7 voxels"):
        ssim(torch.zeros(1, 1, 8, 8, 6), torch.zeros(1, 1, 8, 8, 6))
