"""Inception Score, MS-SSIM and drawn pairs against known answers."""

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from voxfleet.metrics.scores import _scales, inception_score, ms_ssim, pairs


def volumes(shape=(16, 20, 14), n=2):
    return torch.rand(n, 1, *shape, generator=torch.Generator().manual_seed(0))


# Inception Score


@pytest.mark.parametrize("classes", [2, 5])
def test_a_classifier_that_knows_nothing_scores_1_and_one_that_knows_all_their_number(classes):
    assert inception_score(np.full((8, classes), 1 / classes)) == pytest.approx(1)
    assert inception_score(np.eye(classes)[np.arange(4 * classes) % classes]) == pytest.approx(classes)


def test_sure_of_one_class_alone_scores_1():
    assert inception_score(np.tile([0.0, 1.0, 0.0], (7, 1))) == pytest.approx(1)


def test_inception_score_is_that_of_the_definition():
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=9)
    divergences = [sum(a * np.log(a / b) for a, b in zip(row, p.mean(axis=0), strict=True)) for row in p]
    assert inception_score(p) == pytest.approx(np.exp(np.mean(divergences)), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 2)), "sum to 2-2 a row; give a softmax"),
        (np.array([[1.5, -0.5]]), "go down to -0.5"),
        (np.array([[0.5, 0.5], [np.nan, 0.5]]), "1 of 2 rows hold NaN"),
        (np.ones(3) / 3, r"must be \(n, c\)"),
    ],
)
def test_inception_score_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        inception_score(values)


# MS-SSIM


@pytest.mark.parametrize("shape", [(14, 15, 16), (28, 29, 28)])  # 2 and 3 scales
def test_a_volume_is_like_itself_and_less_so_with_noise(shape):
    x = volumes(shape)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    values = torch.stack([ms_ssim(x + sigma * noise, x) for sigma in (0, 0.1, 0.8)])  # (3, B)
    torch.testing.assert_close(values[0], torch.ones(2))
    assert (values.diff(dim=0) < -0.01).all()


@pytest.mark.parametrize(("shape", "scales"), [((14, 40, 27), 2), ((28, 30, 29), 3), ((63, 63, 64), 4)])
def test_ms_ssim_is_the_product_over_the_scales(shape, scales):
    """Equation 7 of Wang et al.: contrast and structure at each scale, luminance at the last; MONAI's parts of them."""
    x = volumes(shape, n=1)
    y = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    weights = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales])
    expected, a, b = torch.tensor(1.0), x, y
    for scale, weight in enumerate(weights / weights.sum()):
        ssim, contrast = compute_ssim_and_cs(a, b, 3, kernel_size=(7, 7, 7), kernel_sigma=(1.5, 1.5, 1.5))
        expected = expected * (ssim if scale == scales - 1 else contrast).mean() ** weight
        a, b = (torch.nn.functional.avg_pool3d(v, 2) for v in (a, b))
    torch.testing.assert_close(ms_ssim(x, y), expected[None])


@pytest.mark.parametrize(("edge", "scales"), [(14, 2), (27, 2), (28, 3), (62, 3), (63, 4), (111, 4), (112, 5)])
def test_there_are_as_many_scales_as_an_edge_has_room_for(edge, scales):
    assert _scales(edge) == scales


def test_ms_ssim_is_each_pairs_own():
    x = volumes(n=3)
    together = ms_ssim(x, x.flip(0))
    assert together[0] < 0.9 < together[1]
    torch.testing.assert_close(together[:1], ms_ssim(x[:1], x[2:]))
    assert ms_ssim(x.bfloat16(), x).dtype == torch.float32


def test_ms_ssim_refuses():
    with pytest.raises(ValueError, match="edge of 13 voxels; MS-SSIM needs 14 or more"):
        ms_ssim(volumes((20, 20, 13)), volumes((20, 20, 13)))
    with pytest.raises(ValueError, match="must be the same"):
        ms_ssim(volumes(), volumes((16, 20, 15)))
    with pytest.raises(ValueError, match="must be the same"):
        ms_ssim(volumes()[0], volumes()[0])
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            ms_ssim(volumes(), volumes().index_fill(2, torch.tensor(3), bad))


# Pairs


@pytest.mark.parametrize("count", [15, 16, 1000])
def test_all_pairs_where_there_are_no_more(count):
    assert sorted(map(tuple, pairs(6, count, seed=0))) == [(i, j) for i in range(6) for j in range(i + 1, 6)]


def test_drawn_pairs_differ_and_are_the_seeds():
    drawn = pairs(50, 300, seed=3)
    assert drawn.shape == (300, 2)
    assert len(set(map(tuple, drawn))) == 300
    assert (drawn[:, 0] < drawn[:, 1]).all()
    assert drawn.min() >= 0
    assert drawn.max() < 50
    np.testing.assert_array_equal(drawn, pairs(50, 300, seed=3))
    assert (drawn != pairs(50, 300, seed=4)).any()


def test_each_pair_is_drawn_as_often():
    """5 of 10 pairs, 2,000 times: each 1,000 times but for chance (standard deviation 22)."""
    counts = np.zeros((5, 5), dtype=int)
    for seed in range(2000):
        counts[tuple(pairs(5, 5, seed).T)] += 1
    assert np.abs(counts[np.triu_indices(5, 1)] - 1000).max() < 100


def test_pairs_of_very_many_samples_are_numbered_without_rounding():
    drawn = pairs(1_000_000, 2000, seed=0)
    assert len(np.unique(drawn, axis=0)) == 2000
    assert (drawn[:, 0] < drawn[:, 1]).all()
    assert drawn.min() >= 0
    assert drawn.max() < 1_000_000


def test_pairs_refuse():
    with pytest.raises(ValueError, match="of 1 samples"):
        pairs(1, 5, seed=0)
    with pytest.raises(ValueError, match="0 pairs"):
        pairs(5, 0, seed=0)
