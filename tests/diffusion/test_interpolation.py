"""Straight lines and arcs between latents."""

import math

import pytest
import torch

from voxfleet.diffusion.interpolation import lerp, slerp
from voxfleet.diffusion.noise import sampling_noise

SHAPE = (4, 3, 5, 3)
WEIGHTS = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])


def latents(samples=5):
    return sampling_noise(torch.arange(samples), 0, SHAPE), sampling_noise(torch.arange(100, 100 + samples), 0, SHAPE)


def lengths(x):
    return x.flatten(1).norm(dim=1)


def angles(x, y):
    cosine = torch.nn.functional.cosine_similarity(x.flatten(1).double(), y.flatten(1).double())
    return torch.acos(cosine.clamp(-1, 1))


@pytest.mark.parametrize("way", [lerp, slerp])
def test_ways_begin_and_end_at_their_ends(way):
    start, end = latents()
    torch.testing.assert_close(way(start, end, torch.zeros(5)), start, rtol=0, atol=1e-6)
    torch.testing.assert_close(way(start, end, torch.ones(5)), end, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", [lerp, slerp])
def test_each_sample_has_its_own_weight(way):
    start, end = latents()
    together = way(start, end, WEIGHTS)
    assert together.shape == (5, *SHAPE)
    for i in range(5):
        torch.testing.assert_close(together[i], way(start[i : i + 1], end[i : i + 1], WEIGHTS[i : i + 1])[0])


def test_lerp_is_the_weighted_mean():
    start, end = latents(2)
    found = lerp(start, end, torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(found, torch.stack([0.75 * start[0] + 0.25 * end[0], (start[1] + end[1]) / 2]))


def test_slerp_keeps_the_length_of_ends_of_equal_length():
    start, end = latents()
    end = end * (lengths(start) / lengths(end)).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(lengths(slerp(start, end, WEIGHTS)), lengths(start), rtol=1e-5, atol=0)
    assert lengths(lerp(start, end, WEIGHTS))[2] < 0.85 * lengths(start)[2]


def test_slerp_turns_in_proportion_to_the_weight():
    start, end = latents()
    end = end * (lengths(start) / lengths(end)).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(
        angles(start, slerp(start, end, WEIGHTS)), WEIGHTS * angles(start, end), rtol=1e-4, atol=1e-5, check_dtype=False
    )


def test_slerp_of_two_axes_is_the_circle():
    x = slerp(torch.tensor([[2.0, 0.0]]).expand(5, 2), torch.tensor([[0.0, 2.0]]).expand(5, 2), WEIGHTS)
    expected = [[2 * math.cos(w * math.pi / 2), 2 * math.sin(w * math.pi / 2)] for w in WEIGHTS.tolist()]
    torch.testing.assert_close(x, torch.tensor(expected))


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_slerp_is_the_straight_line_between_ends_of_one_direction(factor):
    start, _ = latents()
    spread = WEIGHTS.reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(slerp(start, factor * start, WEIGHTS), torch.lerp(start, factor * start, spread))


def test_slerp_between_opposite_ends_and_from_zero_is_finite():
    start, _ = latents()
    opposite = slerp(start, -start, WEIGHTS)
    assert opposite.isfinite().all()
    assert (lengths(opposite) <= 1.001 * lengths(start)).all()
    assert slerp(torch.zeros_like(start), start, WEIGHTS).isfinite().all()
