"""The step, the state and the learning rate, without Ray."""

import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch

from voxfleet.diffusion.noise import Draws
from voxfleet.diffusion.process import DiffusionConfig, Process, spread
from voxfleet.models import DiT3DConfig
from voxfleet.train.diffusion import LOG_SNRS, AugmentConfig, DiffusionRecipe
from voxfleet.train.optim import OptimConfig, learning_rate
from voxfleet.train.state import TrainState, read_state, state_bytes
from voxfleet.train.step import train_step

OPTIM = OptimConfig(lr=1e-3, warmup_steps=2, final_lr_ratio=0.1, ema_decay=0.9)
RECIPE = DiffusionRecipe(
    DiT3DConfig(in_channels=2, input_size=(4, 4, 4), patch_size=(2, 2, 2), hidden_size=24, depth=1, num_heads=2),
    DiffusionConfig(target="x0"),
    mean=(0.0, 1.0),
    std=(1.0, 2.0),
)


def batch(rows=4):
    rng = torch.Generator().manual_seed(0)
    shape = (rows, 2, 4, 4, 4)
    mu, logvar = torch.randn(shape, generator=rng), torch.full(shape, -2.0)
    return {"mu": mu, "logvar": logvar, "label": torch.arange(rows) % 2}


def fresh():
    torch.manual_seed(0)
    return TrainState.create(RECIPE.build(), OPTIM)


def step(state, data=None, scale=None, index=None, epoch=0, recipe=RECIPE, **options):
    data = batch() if data is None else data
    rows = len(data["label"])
    index = torch.arange(rows) if index is None else index
    scale = 1 / rows if scale is None else scale
    settings = {"scale": scale, "total_steps": 20, "optim": OPTIM, "precision": "float32", **options}
    losses, norm = train_step(state, state.model, recipe, data, Draws(0, epoch, index), **settings)
    assert losses["loss"].shape == (rows,)
    assert norm > 0
    return losses["loss"].sum()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_two_steps_save_load_two_steps_equal_four():
    whole, first = fresh(), fresh()
    for epoch in range(4):
        step(whole, epoch=epoch)
    for epoch in range(2):
        step(first, epoch=epoch)
    torch.manual_seed(99)
    second = TrainState.create(RECIPE.build(), OPTIM)
    second.load(read_state(state_bytes(first.snapshot())))
    for epoch in range(2, 4):
        step(second, epoch=epoch)
    assert second.step == whole.step == 4
    assert same(second.model.state_dict(), whole.model.state_dict())
    assert same(second.ema, whole.ema)


class Program:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_holds_a_program_does_not_run_it(tmp_path):
    with pytest.raises(pickle.UnpicklingError):
        read_state(state_bytes({"model": Program(tmp_path / "made")}))
    assert not (tmp_path / "made").exists()


def test_training_lowers_the_loss():
    state = fresh()
    losses = [step(state).item() for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


def test_ema_follows_slowly():
    state = fresh()
    start = {name: value.clone() for name, value in state.ema.items()}
    for _ in range(3):
        step(state)
    name = "patch_embedding.bias"
    moved, followed = (state.model.state_dict()[name] - start[name]).abs(), (state.ema[name] - start[name]).abs()
    assert 0 < followed.sum() < moved.sum()


def test_the_gradient_of_parts_adds_up_to_that_of_the_batch():
    data = batch()
    gradients = []
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        model = fresh().model
        for part in parts:
            rows = {name: value[part] for name, value in data.items()}
            (RECIPE.loss(model, rows, Draws(0, 0, torch.arange(4)[part]))["loss"].sum() / 4).backward()
        gradients.append(model.final_layer.linear.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "diffusion"),
    [
        ({"learn_sigma": True}, {"schedule": "cosine", "target": "epsilon"}),
        ({"learn_sigma": True}, {"zero_terminal_snr": True, "target": "v"}),
        ({}, {"schedule": "flow", "target": "v", "time_density": "logit-normal"}),
        ({}, {"schedule": "flow", "target": "x0", "weighting": "v"}),
        ({"strided_every": 1}, {"target": "x0", "weighting": "min-snr"}),
    ],
    ids=str,
)
def test_every_process_trains(model, diffusion):
    recipe = dataclasses.replace(
        RECIPE,
        model=dataclasses.replace(RECIPE.model, **model),
        diffusion=DiffusionConfig(**diffusion),
        gradient_checkpointing=True,
    )
    torch.manual_seed(0)
    state = TrainState.create(recipe.build(), OPTIM)
    losses = [step(state, recipe=recipe).item() for _ in range(20)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.95 * losses[0]
    assert recipe.validate(state.model, batch(), Draws(0, 0, torch.arange(4)))["loss"].shape == (4,)


def test_labels_are_dropped_at_the_configured_rate():
    seen = []

    def model(x, t, y):
        seen.append(y)
        return x

    recipe = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, class_dropout_prob=0.25))
    rows = 2000
    small = {"mu": torch.zeros(rows, 2, 1, 1, 1), "logvar": torch.zeros(rows, 2, 1, 1, 1)}
    recipe.loss(model, {**small, "label": torch.ones(rows, dtype=torch.int64)}, Draws(0, 0, torch.arange(rows)))
    assert (seen[0] == 2).double().mean().item() == pytest.approx(0.25, abs=0.04)
    assert (seen[0] == 1).sum() + (seen[0] == 2).sum() == rows


def test_latents_are_drawn_anew_each_epoch_and_standardised():
    rows = 500
    data = {"mu": torch.ones(rows, 2, 1, 1, 1), "logvar": torch.full((rows, 2, 1, 1, 1), 2 * np.log(2.0))}
    one, two = (RECIPE.latents(data, Draws(0, epoch, torch.arange(rows))) for epoch in (0, 1))
    assert not torch.equal(one, two)
    assert one[:, 1].mean().item() == pytest.approx(0.0, abs=0.15)
    assert one[:, 1].std().item() == pytest.approx(1.0, abs=0.1)


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(OPTIM, i, 20) for i in range(21)]
    assert rates[0] == pytest.approx(5e-4)
    assert max(rates) == rates[2] == pytest.approx(1e-3)
    assert rates[20] == pytest.approx(1e-4)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_a_snapshot_does_not_change_while_training_goes_on():
    state = fresh()
    step(state)
    snapshot = state.snapshot()
    before = state_bytes(snapshot)
    step(state)
    assert state_bytes(snapshot) == before


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_accumulation_gives_the_gradient_of_the_whole_batch(parts):
    whole, split = fresh(), fresh()
    for epoch in range(3):
        losses = step(whole, epoch=epoch), step(split, epoch=epoch, accumulate=parts)
        torch.testing.assert_close(*losses, rtol=0, atol=1e-4)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(split.model.state_dict()[name], value, rtol=0, atol=1e-5)


def test_float16_follows_float32_and_its_scale_is_saved():
    exact, half = fresh(), TrainState.create(fresh().model, OPTIM, "float16")
    for epoch in range(5):
        losses = step(exact, epoch=epoch), step(half, epoch=epoch, precision="float16")
        torch.testing.assert_close(*losses, rtol=0.02, atol=0)
    assert half.scaler.is_enabled()
    assert not exact.scaler.is_enabled()
    half.scaler.update(1024.0)
    restored = TrainState.create(fresh().model, OPTIM, "float16")
    restored.load(read_state(state_bytes(half.snapshot())))
    assert restored.scaler.get_scale() == 1024.0


def test_augmentation_adds_noise():
    draws, x0 = Draws(0, 0, torch.arange(400)), torch.ones(400, 2, 4, 2, 2)
    noisy = dataclasses.replace(RECIPE, augment=AugmentConfig(noise=0.3))
    assert (noisy._augmented(x0, draws) - x0).std().item() == pytest.approx(0.3, rel=0.02)
    assert torch.equal(RECIPE._augmented(x0, draws), x0)


def test_validation_is_by_parts_of_time_on_draws_that_never_change():
    state = fresh()
    for _ in range(3):
        step(state)  # a fresh network answers zero at all times
    found = RECIPE.validate(state.model, batch(), Draws(0, 0, torch.arange(4)))
    parts = [found[f"loss_t{number}of4"] for number in (1, 2, 3, 4)]
    torch.testing.assert_close(found["loss"], torch.stack(parts).mean(dim=0))
    assert not torch.equal(parts[0], parts[3])
    again = RECIPE.validate(state.model, batch(), Draws(0, 0, torch.arange(4)))
    assert torch.equal(found["loss"], again["loss"])


# Losses of 20 steps of 4 on this file's recipe: a change of the maths, the noise or the optimizer shows here.
PINNED = [
    *(0.8568, 0.7964, 0.8019, 0.8163, 0.8225, 0.8035, 0.8138, 0.7510, 0.7604, 0.7574),
    *(0.7976, 0.7348, 0.7729, 0.7605, 0.7253, 0.7562, 0.7332, 0.7746, 0.7868, 0.7225),
]


def test_the_loss_curve_is_pinned():
    state = fresh()
    losses = [step(state, epoch=epoch).item() / 4 for epoch in range(20)]
    assert losses == pytest.approx(PINNED, abs=2e-4)


class Knows(torch.nn.Module):
    """Answers, in terms of ``target``, that x0 is ``guess``."""

    def __init__(self, process, guess):
        super().__init__()
        self.process, self.guess = process, guess

    def forward(self, x, t, y):
        of_x, of_x0 = self.process.conversion("x0", self.process.config.target, t)
        return spread(of_x, x) * x + spread(of_x0, x) * self.guess


@pytest.mark.parametrize(
    "diffusion",
    [
        {"target": "epsilon"},
        {"target": "v", "schedule": "cosine"},
        {"target": "x0", "weighting": "min-snr"},
        {"target": "v", "schedule": "flow"},
    ],
)
def test_the_error_compares_networks_of_any_process(diffusion):
    """The same belief about x0 has the same error, whatever is predicted, weighted and however noise grows."""
    recipe = dataclasses.replace(RECIPE, diffusion=DiffusionConfig(**diffusion))
    data, draws = batch(), Draws(0, 0, torch.arange(4))
    x0 = recipe.latents(data, draws)
    found = recipe.validate(Knows(Process(recipe.diffusion), torch.zeros_like(x0)), data, draws)["error"]
    factor = np.mean([1 + np.exp(log_snr) for log_snr in LOG_SNRS])
    torch.testing.assert_close(found, factor * x0.square().flatten(1).mean(dim=1), rtol=0.02, atol=0)
    assert recipe.validate(Knows(Process(recipe.diffusion), x0), data, draws)["error"].max() < 1e-6
