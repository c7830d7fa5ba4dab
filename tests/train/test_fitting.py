"""Fitting a small network: the best epoch is kept, whatever came after it."""

import numpy as np
import pytest
import torch

from voxfleet.errors import UnfitError
from voxfleet.train.fitting import FitConfig, fit


def fitted(val_losses, scale=1.0):
    """A weight that falls in every step, and these validation losses."""
    model = torch.nn.Linear(1, 1, bias=False)
    seen, losses = [], iter(val_losses)

    def validate():
        seen.append(float(model.weight.detach()))
        return {"val_loss": next(losses)}

    config = FitConfig(epochs=len(val_losses), batch_size=3, warmup=0.25)
    found = fit(model, config, lambda epoch: np.arange(8), lambda rows: scale * model.weight.sum(), validate)
    return model, found, seen


def test_the_weights_are_those_of_the_best_epoch():
    model, found, seen = fitted([3.0, 1.0, 2.0, 1.0])
    assert found.best["epoch"] == 2
    assert float(model.weight.detach()) == seen[1]
    assert seen == sorted(seen, reverse=True)
    assert not model.training


def test_the_rate_rises_and_falls_to_zero_over_all_steps():
    _, found, _ = fitted([1.0] * 4)
    assert [point["step"] for point in found.history] == [3, 6, 9, 12]
    assert found.history[0]["lr"] == pytest.approx(1e-3)
    assert 0 < found.history[-1]["lr"] < 5e-5


@pytest.mark.parametrize(("val_losses", "scale"), [([1.0, np.nan], 1.0), ([1.0, 1.0], np.inf)])
def test_a_loss_that_is_not_finite_is_said(val_losses, scale):
    with pytest.raises(UnfitError, match=r"not finite in epoch [12]; lower training.lr"):
        fitted(val_losses, scale)


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 0), ("batch_size", 0), ("lr", 0.0), ("weight_decay", -1.0), ("warmup", 1.0)]
)
def test_values_that_cannot_be_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}; it must be"):
        FitConfig(**{key: value})
