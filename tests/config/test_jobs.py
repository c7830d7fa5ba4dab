"""What configurations refuse and warn of, across the parts that they are made of."""

import re

import pytest

from voxfleet.cli import parse
from voxfleet.config.jobs import TrainConfig, TrainVaeConfig
from voxfleet.config.resources import ResourcesConfig
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.errors import UserError
from voxfleet.models import DiT3DConfig
from voxfleet.train.step import TrainerConfig


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_workers": 0}, "min_workers is 0; it must be 1 to 2"),
        ({"workers": 4, "min_workers": 5}, "min_workers is 5; it must be 1 to 4"),
        ({"wait_s": -1}, "wait_s is -1; it must be 0 or more"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
    ],
)
def test_resources_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ResourcesConfig(**values)
    assert ResourcesConfig(workers=4, min_workers=4, wait_s=0).min_workers == 4


def test_an_autoencoder_is_not_compiled():
    with pytest.raises(ValueError, match=r"trainer.compile is true; .* set it to false"):
        TrainVaeConfig(name="a", output="runs", data="volumes", trainer=TrainerConfig(compile=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer:", "config key trainer has no value"),
        ("model: {window_size: [2, 2, 2]}\nloading: []", "config key loading is []; it is a group"),
        ("optim: {betas: }", "config key optim.betas has no value"),
    ],
)
def test_keys_without_a_value_are_named(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(f"name: a\noutput: runs\ndata: latents\n{text}\n")
    with pytest.raises(UserError, match=re.escape(words)):
        parse("train", ["--config", str(tmp_path / "c.yaml")])
