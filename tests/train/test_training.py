"""The step, the state and the learning rate, without Ray."""

import dataclasses

import numpy as np
import pytest
import torch

from voxfleet.data.plan import epoch_order, steps_per_epoch, worker_slice
from voxfleet.diffusion.noise import Draws
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.models import DiT3DConfig
from voxfleet.train.diffusion import DiffusionRecipe
from voxfleet.train.optim import OptimConfig, learning_rate
from voxfleet.train.state import TrainState
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


def step(state, data=None, scale=None, index=None, epoch=0, recipe=RECIPE):
    data = batch() if data is None else data
    rows = len(data["label"])
    index = torch.arange(rows) if index is None else index
    scale = 1 / rows if scale is None else scale
    return train_step(
        state,
        state.model,
        recipe,
        data,
        Draws(0, epoch, index),
        scale=scale,
        total_steps=20,
        optim=OPTIM,
        precision="float32",
    )


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
    second.load_bytes(first.to_bytes())
    for epoch in range(2, 4):
        step(second, epoch=epoch)
    assert second.step == whole.step == 4
    assert same(second.model.state_dict(), whole.model.state_dict())
    assert same(second.ema, whole.ema)


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
            (RECIPE.loss(model, rows, Draws(0, 0, torch.arange(4)[part])).sum() / 4).backward()
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


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize(("samples", "size"), [(103, 8), (5, 50), (12, 4)])
def test_each_epoch_sees_every_sample_once_over_any_number_of_workers(world, samples, size):
    for epoch in range(3):
        order = epoch_order(samples, 7, epoch)
        seen = []
        for s in range(steps_per_epoch(samples, size)):
            parts = [worker_slice(samples, size, s, world, rank) for rank in range(world)]
            assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1
            seen += [row for part in parts for row in order[part].tolist()]
        assert sorted(seen) == list(range(samples))
        assert seen == order.tolist()  # the global batches are the same for every number of workers


def test_orders_differ_by_epoch_and_seed_and_are_pinned():
    assert epoch_order(6, 0, 0).tolist() == [
        0,
        3,
        5,
        1,
        2,
        4,
    ]  # a changed order would break the resumption of every run
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 0, 1).tolist()
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 1, 0).tolist()
