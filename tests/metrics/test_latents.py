"""Distances between sets of latents."""

import torch

from voxfleet.metrics.latents import energy_coefficient, novelty


def test_it_is_nothing_for_one_distribution_and_grows_with_the_difference():
    rng = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(200, 16, generator=rng) for _ in range(3))
    assert abs(energy_coefficient(x, y)) < 0.01
    near, far = energy_coefficient(x, z + 0.5), energy_coefficient(x, z + 5)
    assert 0.01 < near < far < 1
    assert energy_coefficient(x, 0.1 * z) > 0.05  # too little variety


def test_it_is_that_of_the_definition():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [4.0]])
    between = (1 + 4 + 1 + 2) / 4
    assert abs(energy_coefficient(x, y) - (2 * between - 2 - 3) / (2 * between)) < 1e-12


def people(number: int = 30, size: int = 3000) -> torch.Tensor:
    return torch.randn(number, size, generator=torch.Generator().manual_seed(1))


def test_a_copy_is_told_by_its_novelty_whatever_noise_is_on_it():
    known, each = people(), torch.arange(30)
    noise = torch.randn(30, 3000, generator=torch.Generator().manual_seed(2))
    assert novelty(known, known, each).abs().max() < 1e-6
    assert novelty(known + 2 * noise, known, each).abs().max() < 0.2  # four times the variance of people
    assert novelty(0.8 * known, known, each).max() < 0.25  # drawn a little towards the mean


def test_what_was_not_there_before_is_new():
    known, each = people(), torch.arange(30)
    others = torch.randn(30, 3000, generator=torch.Generator().manual_seed(3))
    for x in (others, 0.3 * others, torch.zeros(1, 3000), (known[:1] + known[1:2]) / 2):
        assert novelty(x, known, each).min() > 0.4
        assert novelty(x, known, each).max() < 0.5 + 1e-9


def test_novelty_is_the_place_on_the_way():
    known, x = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 10.0]]), torch.tensor([[1.0, 3.0], [4.0, -9.0]])
    torch.testing.assert_close(novelty(x, known, torch.arange(3)), torch.tensor([0.3, 0.0], dtype=torch.float64))


def test_scans_of_one_subject_do_not_hide_a_copy_that_lies_between_them():
    known, noise = people(), torch.randn(30, 3000, generator=torch.Generator().manual_seed(4))
    twice, each = torch.cat([known, known + 0.5 * noise]), torch.arange(30).repeat(2)
    assert novelty(known + 0.25 * noise, twice, each).max() < 0.1
    unnoticed = torch.cat([known, known + 0.05 * noise])  # the same head under two names
    assert novelty(known + 0.025 * noise, unnoticed, torch.arange(60)).max() < 0.1
