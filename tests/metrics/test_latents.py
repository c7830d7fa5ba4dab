"""Distances between sets of latents."""

import torch

from voxfleet.metrics.latents import energy_coefficient


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
