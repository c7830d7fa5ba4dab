"""What model-summary says, against the network itself and against arithmetic."""

import math

import pytest

from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.attention import plan_windows
from voxfleet.models.summary import summarize, summary_lines

CONFIG = DiT3DConfig(input_size=(7, 11, 5), patch_size=(1, 2, 2), hidden_size=48, depth=4, num_heads=4, global_every=4)


def test_parameters_are_those_of_the_network():
    costs = summarize(lambda: DiT3D(CONFIG), (4, 7, 11, 5))
    assert costs.parameters == sum(p.numel() for p in DiT3D(CONFIG).parameters())


def test_flops_are_those_of_its_matrix_products():
    costs, tokens, E = summarize(lambda: DiT3D(CONFIG), (4, 7, 11, 5)), math.prod(CONFIG.grid), 48
    groups = plan_windows(CONFIG.grid, CONFIG.window_size).groups
    attention = 4 * E * (3 * sum(count * size**2 for count, size in groups) + tokens**2)
    patch = 2 * tokens * E * 16 * 2  # into tokens and out of them
    blocks = 4 * 2 * (tokens * 12 * E**2 + 6 * E**2)
    condition = 2 * (256 * E + E**2 + 2 * E**2)
    assert costs.attention_flops == attention
    assert costs.flops == attention + patch + blocks + condition


def test_lines_name_what_a_user_asks_for():
    text = "\n".join(summary_lines(CONFIG))
    assert "126, a grid of 7 x 6 x 3" in text
    assert "3 window, 1 global" in text
    assert "2 of 36 tokens, 2 of 27 tokens" in text


@pytest.mark.parametrize(("hidden", "warned"), [(16, False), (12, True)])
def test_a_patch_of_more_numbers_than_the_hidden_size_is_pointed_out(hidden, warned):
    config = DiT3DConfig(patch_size=(1, 2, 2), hidden_size=hidden, num_heads=2)
    assert any("target x0" in line for line in summary_lines(config)) == warned
