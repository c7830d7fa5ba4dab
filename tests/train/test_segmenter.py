"""The segmenter: its loss, its augmentation, and that it finds what is planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from voxfleet.models.segmenter import SegmenterConfig, build_segmenter, structure_voxels
from voxfleet.train.segmenter import (
    LabelledVolumes,
    SegmenterAugmentConfig,
    SegmenterTrainingConfig,
    augmented,
    loss_function,
    segmented,
    train_segmenter,
)

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = SegmenterConfig(channels=(8, 16), res_units=1)
STILL = SegmenterAugmentConfig(blur=0, gamma=0, noise=0)


def planted(n, seed):
    """Heads with two bright boxes of random size, the left and the right hippocampus."""
    rng = np.random.default_rng(seed)
    volumes = np.full((n, 13, 10, 9), 0.3) + 0.02 * rng.standard_normal((n, 13, 10, 9))
    filled = np.zeros((n, 2, 13, 10, 9))
    for i in range(n):
        for side, x in enumerate((2, 8)):
            size = int(rng.integers(2, 5))
            filled[i, side, x : x + 3, 3 : 3 + size, 3:6] = 1
    return LabelledVolumes.of(volumes + 0.5 * filled.sum(axis=1), filled)


def test_edges_may_be_odd_and_samples_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    model = build_segmenter(SegmenterConfig(channels=(4, 8, 16))).eval()
    x = torch.rand(3, 1, 13, 10, 8)
    with torch.inference_mode():
        logits = model(x)
        assert logits.shape == (3, 3, 13, 10, 8)
        torch.testing.assert_close(model(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


def test_a_volume_is_the_sum_of_shares_that_are_not_nearly_none():
    torch.testing.assert_close(structure_voxels(torch.zeros(1, 3, 2, 3, 4)), torch.full((1, 2), 8.0))
    logits = torch.zeros(1, 3, 2, 3, 4)
    logits[:, 0] = 5  # shares of .0066
    assert structure_voxels(logits).sum() == 0


def test_the_loss_is_least_where_the_prediction_is_the_share_itself():
    shares = torch.rand(2, 3, 4, 4, 4).softmax(dim=1)
    logits = shares.log().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_function(logits, shares), logits)
    assert gradient.abs().max() < 1e-6
    for step in (0.1, -0.1):
        assert loss_function(logits + step * torch.randn_like(logits), shares) > loss_function(logits, shares)


def test_a_mirrored_head_has_left_for_right():
    samples = planted(32, 0)
    volumes, shares = samples.tensors(torch.device("cpu"))
    torch.manual_seed(0)
    found, labels = augmented(volumes, shares, STILL)
    same = [torch.equal(a, b) for a, b in zip(found, volumes, strict=True)]
    assert 5 < sum(same) < 27
    for i, kept in enumerate(same):
        if kept:
            torch.testing.assert_close(labels[i], shares[i])
        else:
            torch.testing.assert_close(found[i], volumes[i].flip(1))
            torch.testing.assert_close(labels[i, 1], shares[i, 2].flip(0))
            torch.testing.assert_close(labels[i, 0], shares[i, 0].flip(0))


def test_blur_and_noise_keep_the_mean_and_the_air():
    volumes = torch.zeros(8, 1, 12, 12, 12)
    volumes[:, :, 3:9, 3:9, 3:9] = 0.5
    shares = torch.zeros(8, 3, 12, 12, 12)
    found, _ = augmented(volumes, shares, SegmenterAugmentConfig(blur=1, gamma=0, noise=0))
    torch.testing.assert_close(found.sum(dim=(1, 2, 3, 4)), volumes.sum(dim=(1, 2, 3, 4)))
    assert (found[:, 0, 2, 6, 6] > 0).any()
    found, _ = augmented(volumes, shares, SegmenterAugmentConfig(blur=0, gamma=0.2, noise=0.1))
    assert found[volumes == 0].abs().max() == 0
    assert found[0].std() != found[1].std()


def test_finds_planted_structures_and_their_volumes():
    config = SegmenterTrainingConfig(epochs=25, batch_size=4, augment=replace(STILL, noise=0.01))
    model, fitted = train_segmenter(MODEL, config, planted(24, 0), planted(6, 1), seed=0)
    assert fitted.best == min(fitted.history, key=lambda point: point["val_loss"])
    unseen = planted(16, 2)
    voxels, dice = segmented(model, unseen, 5)
    assert dice.min() > 0.9
    np.testing.assert_allclose(voxels, unseen.voxels, rtol=0.15)
    again, _ = train_segmenter(MODEL, replace(config, epochs=1), planted(24, 0), planted(6, 1), seed=0)
    other, _ = train_segmenter(MODEL, replace(config, epochs=1), planted(24, 0), planted(6, 1), seed=0)
    for name, value in again.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
