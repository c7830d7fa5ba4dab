"""Fits on real Ray Train: gradients are averaged, what is logged, and a loss that is not finite."""

import dataclasses
import sys

import numpy as np
import pytest
import ray
from ray import cloudpickle

from voxfleet.config.resources import ResourcesConfig
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.engine.ingest import Kept
from voxfleet.engine.training import fit
from voxfleet.errors import UserError
from voxfleet.models import DiT3DConfig
from voxfleet.tracking.base import MemoryTracker
from voxfleet.train.diffusion import DiffusionRecipe
from voxfleet.train.optim import OptimConfig
from voxfleet.train.step import TrainerConfig

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
pytestmark = pytest.mark.usefixtures("ray_session")

RECIPE = DiffusionRecipe(
    DiT3DConfig(in_channels=2, input_size=(4, 4, 4), patch_size=(2, 2, 2), hidden_size=24, depth=1, num_heads=2),
    DiffusionConfig(target="x0"),
    mean=(0.0, 0.0),
    std=(1.0, 1.0),
)


@dataclasses.dataclass(frozen=True)
class Diverging(DiffusionRecipe):
    """Its loss is NaN from the draws of the third epoch on."""

    def loss(self, model, batch, draws):
        """NaN after a while."""
        return super().loss(model, batch, draws) * (float("nan") if draws.epoch >= 2 else 1.0)


def kept(rows):
    rng = np.random.default_rng(rows)
    mu = rng.normal(size=(rows, 2, 4, 4, 4)).astype(np.float32)
    columns = {"mu": mu, "logvar": np.full_like(mu, -4.0), "label": np.arange(rows) % 2}
    return Kept({name: ray.put(values) for name, values in columns.items()}, rows)


def train(tmp_path, recipe, workers, **changes):
    tracker = MemoryTracker()
    state = fit(
        recipe,
        {"train": kept(11), "val": kept(3)},
        folder=str(tmp_path),
        name=f"w{workers}",
        trainer=TrainerConfig(epochs=4, batch_size=5, log_every=1, validate_every=2, **changes),
        optim=OptimConfig(lr=1e-2, ema_decay=0.9),
        resources=ResourcesConfig(workers=workers),
        tracker=tracker,
    )
    return state, tracker


def values(points, name):
    return {point["step"]: point[name] for point in points if name in point}


def test_one_and_two_workers_give_the_same_losses_and_everything_is_logged(tmp_path):
    """The last batch of an epoch has one sample: the second worker of two has none, and the mean is still exact."""
    one, tracker = train(tmp_path, RECIPE, 1)
    two, _ = train(tmp_path, RECIPE, 2)
    losses = values(one["history"], "loss")
    assert list(losses) == list(range(1, 13))
    assert values(two["history"], "loss") == pytest.approx(losses, abs=1e-5)
    validation = values(one["history"], "val_loss")
    assert list(validation) == [6, 12]
    assert values(two["history"], "val_loss") == pytest.approx(validation, abs=1e-5)
    assert values(tracker.points, "loss") == losses
    assert values(tracker.points, "val_loss") == validation


@pytest.mark.parametrize(("every", "step"), [(2, 6), (100, 0)])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path, every, step):
    recipe = Diverging(**{field.name: getattr(RECIPE, field.name) for field in dataclasses.fields(RECIPE)})
    with pytest.raises(UserError, match=f"not finite after step {step}"):
        train(tmp_path, recipe, 2, checkpoint_every=every)
    assert len(list((tmp_path / "w2").glob("checkpoint_*/state.pt"))) == min(step, 1)
