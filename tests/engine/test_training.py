"""Fits on real Ray Train: gradients are averaged, kept equals streamed, what is logged, and what ends a run."""

import dataclasses
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from ray import cloudpickle

from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.index import read_index
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.engine.ingest import open_splits
from voxfleet.engine.training import fit
from voxfleet.engine.validation import sums
from voxfleet.engine.worker import WorkerError
from voxfleet.errors import UserError, WorkMissingError
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
ROWS, EPOCHS = 11, 7
COLUMNS = ("mu", "logvar")


@dataclasses.dataclass(frozen=True)
class Diverging(DiffusionRecipe):
    """Its loss and gradient are NaN for the draw at one place of the third epoch."""

    def loss(self, model, batch, draws):
        losses = super().loss(model, batch, draws)["loss"]
        wrong = (draws.index == 6) & (draws.epoch == 2)
        return {"loss": losses * torch.where(wrong, float("nan"), 1.0)}


@pytest.fixture
def train(tmp_path, latents):
    def run(recipe, workers, *, mode="kept", name=None, balanced=False, data=None, validate=2, **changes):
        folder, manifest = data or latents(rows=ROWS)
        tracker = MemoryTracker()
        trained = fit(
            recipe,
            open_splits(read_index(folder, manifest, COLUMNS), COLUMNS, mode),
            folder=str(tmp_path),
            name=name or f"{mode}{workers}",
            trainer=TrainerConfig(epochs=EPOCHS, batch_size=5, log_every=1, validate_every=validate, **changes),
            optim=OptimConfig(lr=1e-2, ema_decay=0.9),
            resources=ResourcesConfig(workers=workers),
            tracker=tracker,
            balanced=balanced,
        )
        return trained, tracker

    return run


def values(points, name):
    return {point["step"]: point[name] for point in points if name in point}


@pytest.mark.slow
def test_any_number_of_workers_kept_or_streamed_gives_the_same_losses_and_everything_is_logged(train, tmp_path):
    """The last batch of an epoch has one sample: the other workers have none, and the mean is still exact.

    Two workers are validated beside the training; three take all CPUs, so they validate themselves, and what reads for
    them has none. What was left without validation, as if lost on the way, is validated by the same command.
    """
    one, tracker = train(RECIPE, 1)
    losses, validation = values(one.history, "loss"), values(one.history, "val_loss")
    assert list(losses) == list(range(1, 22))
    assert list(validation) == [6, 12, 18, 21]
    for workers, mode in ((2, "kept"), (3, "streamed")):
        more, _ = train(RECIPE, workers, mode=mode)
        assert values(more.history, "loss") == pytest.approx(losses, abs=1e-5)
        assert values(more.history, "val_loss") == pytest.approx(validation, abs=1e-5)
    (tmp_path / "kept2" / "validation.json").unlink()
    again, _ = train(RECIPE, 2)
    found = values(again.history, "val_loss")
    assert found == pytest.approx({step: validation[step] for step in (one.best["step"], 21)}, abs=1e-5)
    assert values(tracker.points, "loss") == losses
    assert values(tracker.points, "val_loss") == validation
    for name in ("grad_norm", "lr", "samples_per_s", "data_wait_share", "memory_gb"):
        assert list(values(tracker.points, name)) == list(losses)
    assert one.best["step"] == min(validation, key=validation.get)
    kept = {f"step-{step:09d}.pt" for step in (one.best["step"], 21)}
    assert {path.name for path in (tmp_path / "kept1" / "checkpoints").iterdir()} == kept


@pytest.mark.parametrize(("workers", "every", "step"), [(2, 2, 6), (1, 100, 0)])
def test_a_loss_that_is_not_finite_names_the_sample_and_keeps_the_last_good_checkpoint(
    train, tmp_path, workers, every, step
):
    recipe = changed(Diverging)
    with pytest.raises(UserError, match=r"not finite at step 8, for sub-\d{4} \(") as error:
        train(recipe, workers, checkpoint_every=every, name="nan", **({} if step else {"validate": 100}))
    assert (f"step {step} is kept" if step else "no checkpoint yet") in str(error.value)
    assert len(list((tmp_path / "nan").glob("checkpoints/*.pt"))) == min(step, 1)


@dataclasses.dataclass(frozen=True)
class Full(DiffusionRecipe):
    """Its process can write no file above a kilobyte as soon as there is a first checkpoint."""

    first: str = ""

    def loss(self, model, batch, draws):
        if Path(self.first).exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        return super().loss(model, batch, draws)


@dataclasses.dataclass(frozen=True)
class Broken(DiffusionRecipe):
    """It has a bug."""

    def loss(self, model, batch, draws):
        if draws.epoch == 2:
            raise ZeroDivisionError("the bug")
        return super().loss(model, batch, draws)


def changed(kind):
    return kind(**{field.name: getattr(RECIPE, field.name) for field in dataclasses.fields(RECIPE)})


@pytest.mark.matrix
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_same_command_continues(train, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    recipe = dataclasses.replace(changed(Full), first=str(checkpoints / "step-000000006.pt"))
    with pytest.raises(UserError, match=r"cannot write .*step-0000000(12|18).pt \(File too large\).* continue"):
        train(recipe, 2, name="run")
    assert {path.suffix for path in checkpoints.iterdir()} == {".pt"}
    trained, _ = train(RECIPE, 2, name="run")
    assert list(values(trained.history, "loss")) == list(range(1, 22))


@dataclasses.dataclass(frozen=True)
class Dying(DiffusionRecipe):
    """Its process dies in the second epoch, always."""

    def loss(self, model, batch, draws):
        if draws.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch, draws)


@pytest.mark.slow
def test_workers_that_are_lost_too_often_end_the_run_with_what_to_do(train):
    with pytest.raises(WorkMissingError, match=r"more often than trainer.max_failures \(1\).*run the same command"):
        train(changed(Dying), 1, max_failures=1)


def test_validation_draws_the_same_whatever_the_seed_of_the_run(latents):
    folder, manifest = latents(rows=ROWS)
    reader = open_splits(read_index(folder, manifest, COLUMNS), COLUMNS, "kept")["val"].open()
    torch.manual_seed(0)
    model = RECIPE.build()
    torch.nn.init.normal_(model.final_layer.linear.weight)
    found = [sums(RECIPE, model, reader, range(3), TrainerConfig(seed=seed), size=2)["loss"] for seed in (0, 1)]
    assert found[0] == found[1] != 0


@pytest.mark.matrix
def test_a_bug_in_a_worker_ends_the_run_with_its_traceback(train):
    with pytest.raises(WorkerError, match=r"in loss[\s\S]*ZeroDivisionError: the bug"):
        train(changed(Broken), 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kept", "streamed"])
def test_a_damaged_page_ends_the_run_with_the_name_of_the_shard(train, latents, mode):
    folder, manifest = latents(rows=ROWS)
    path = Path(folder) / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[300:700] = bytes(400)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"part-00001\.parquet is missing or damaged"):
        train(RECIPE, 2, mode=mode, data=(folder, manifest))
