"""One fit in a process of its own, so that a test can kill it: a script, run with one JSON argument.

Keys: data (folder of latents), folder, name, mode, workers, epochs, kills ([{"epoch", "place", "who"}]: who takes the
draw at ``place`` of ``epoch`` is killed, or the driver is, once each), balanced, result (where the digest goes).
"""

import dataclasses
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import ray

from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.index import read_index
from voxfleet.data.shards import read_manifest
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.engine import cluster
from voxfleet.engine.ingest import open_splits
from voxfleet.engine.training import fit
from voxfleet.models import DiT3DConfig
from voxfleet.tracking.base import NullTracker
from voxfleet.train.diffusion import DiffusionRecipe
from voxfleet.train.optim import OptimConfig
from voxfleet.train.step import TrainerConfig


@dataclasses.dataclass(frozen=True)
class Deadly(DiffusionRecipe):
    """Kills, in the middle of a step."""

    kills: tuple = ()
    driver: int = 0
    marks: str = ""

    def loss(self, model, batch, draws):
        for number, kill in enumerate(self.kills):
            mark = Path(self.marks) / f"killed-{number}"
            if draws.epoch == kill["epoch"] and kill["place"] in draws.index.tolist() and not mark.exists():
                mark.touch()
                if kill["who"] == "driver":  # this process may live on, and write a checkpoint: its step stays whole
                    os.kill(self.driver, signal.SIGKILL)
                else:
                    super().loss(model, batch, draws)["loss"].sum().backward()
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch, draws)


def digest(state):
    """Of the weights, their averages and the optimizer's moments."""
    found = hashlib.sha256()
    for part in ("model", "ema"):
        for name, value in sorted(state[part].items()):
            found.update(name.encode() + value.numpy().tobytes())
    for number, moments in sorted(state["optimizer"]["state"].items()):
        for name, value in sorted(moments.items()):
            found.update(f"{number}{name}".encode() + value.numpy().tobytes())
    return found.hexdigest()


def main(asked):
    recipe = Deadly(
        DiT3DConfig(in_channels=2, input_size=(4, 4, 4), patch_size=(2, 2, 2), hidden_size=96, depth=2, num_heads=2),
        DiffusionConfig(target="x0"),
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
        kills=tuple(asked["kills"]),
        driver=os.getpid(),
        marks=asked["marks"],
    )
    cluster._private_token()
    # one CPU more than workers: for the streams, and for validation beside the training
    ray.init(address="local", num_cpus=asked["workers"] + 1, include_dashboard=False, log_to_driver=False)
    cluster.quiet_data()
    columns = ("mu", "logvar")
    splits = read_index(asked["data"], read_manifest(asked["data"], "latents"), columns)
    data = open_splits(splits, columns, asked["mode"])
    trained = fit(
        recipe,
        data,
        folder=asked["folder"],
        name=asked["name"],
        trainer=TrainerConfig(epochs=asked["epochs"], batch_size=7, log_every=2, validate_every=2, checkpoint_every=1),
        optim=OptimConfig(lr=3e-3, ema_decay=0.9, warmup_steps=3, final_lr_ratio=0.1),
        resources=ResourcesConfig(workers=asked["workers"]),
        tracker=NullTracker(),
        balanced=asked["balanced"],
    )
    ray.shutdown()
    result = {"digest": digest(trained.state), "best": digest(trained.best), "history": trained.history}
    Path(asked["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
