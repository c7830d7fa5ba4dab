"""What configurations refuse and warn of, across the parts that they are made of."""

import pytest

from voxfleet.config.jobs import TrainConfig
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.models import DiT3DConfig


def train(model=None, diffusion=None):
    names = {"name": "a", "output": "runs", "data": "latents"}
    return TrainConfig(**names, model=DiT3DConfig(**(model or {})), diffusion=DiffusionConfig(**(diffusion or {})))


@pytest.mark.parametrize("diffusion", [{"schedule": "flow", "target": "v"}, {"target": "x0"}])
def test_a_variance_is_learned_where_the_process_has_one_and_the_bound_is_tame(diffusion):
    assert train({"learn_sigma": True}, {"target": "v"}).model.learn_sigma
    with pytest.raises(
        ValueError, match=r"model.learn_sigma is true, .*diffusion\.(schedule flow|target epsilon or v)"
    ):
        train({"learn_sigma": True}, diffusion)


@pytest.mark.parametrize(("target", "warned"), [("epsilon", True), ("v", True), ("x0", False)])
def test_noise_that_the_tokens_cannot_hold_is_warned_of(target, warned):
    found = train({"hidden_size": 192}, {"target": target}).warnings
    assert [text for text in found if "a patch holds 256 numbers" in text] == found
    assert bool(found) == warned
    assert train({"hidden_size": 384}, {"target": target}).warnings == []


def test_windows_that_nothing_crosses_are_warned_of():
    (found,) = train({"input_size": (28, 34, 28)}).warnings
    assert "strided_every 2 or model.global_every 4" in found
    assert train({"input_size": (28, 34, 28), "strided_every": 2}).warnings == []
