"""A fit on three nodes, one of which is lost on the way: a script, run with a folder and latents in it.

Elastic, it goes on with fewer workers; else it ends, as there is no room, with the exit code of its error. Warned, it
is told before: the only checkpoint that it has then is the one that it writes because of that; and when it has gone on
for a while, another node joins, so that it ends with as many workers as it began with.
"""

import dataclasses
import functools
import json
import os
import sys
import threading
import time
from pathlib import Path

from voxfleet.engine import cluster  # sets what Ray reads when it is imported

os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"  # how long Ray Train waits for the node to come back
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"  # off where the session of the tests has set it
os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"

import ray
import torch
from ray import cloudpickle
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.train import ScalingConfig

from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.index import read_index
from voxfleet.data.shards import read_manifest
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.engine import training
from voxfleet.engine.ingest import open_splits
from voxfleet.errors import WorkMissingError
from voxfleet.models import DiT3DConfig
from voxfleet.tracking.base import MemoryTracker
from voxfleet.train.diffusion import DiffusionRecipe
from voxfleet.train.optim import OptimConfig
from voxfleet.train.step import TrainerConfig

cloudpickle.register_pickle_by_value(sys.modules[__name__])
COLUMNS, _WORKERS = ("mu", "logvar"), 3
_WARNED_IN, _JOINED_IN = 2, 6  # the epochs of steps 12 and 30


@dataclasses.dataclass(frozen=True)
class Witness(DiffusionRecipe):
    """Writes down each draw, and the first number of the latents that it got."""

    seen: str = ""
    first: str = ""  # where the address of the first checkpoint goes, if that is waited for
    joined: str = ""  # there when another node has joined

    def _waits(self, epoch):
        """For Ray, which takes seconds to see that a node is about to be lost, is lost, or has joined."""
        is_whole = Path(self.joined).exists() and torch.distributed.get_world_size() == _WORKERS
        return (epoch > _WARNED_IN and not Path(self.first).exists()) or (epoch > _JOINED_IN and not is_whole)

    def loss(self, model, batch, draws):
        time.sleep(1.0 if self.first and self._waits(draws.epoch) else 0.05)  # so that there is something left to do
        drawn = zip(draws.index.tolist(), batch["mu"][:, 0, 0, 0, 0].tolist(), strict=True)
        with Path(self.seen, str(os.getpid())).open("a") as file:
            file.writelines(json.dumps([draws.epoch, *draw]) + "\n" for draw in drawn)
        return super().loss(model, batch, draws)


def warn(address, node_id):
    """As a cloud does before it takes a machine of the spot market back."""
    reason, deadline_ms = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), int((time.time() + 600) * 1000)
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "spot", deadline_ms)
    assert accepted, why


class Loser(MemoryTracker):
    """Removes a node when the training has got to step 12, or warns of that, and removes it after a checkpoint."""

    lose = lose_when_saved = join = None
    first = ""  # where the address of the first checkpoint goes

    def log_reference(self, name, uri):
        super().log_reference(name, uri)
        if self.lose_when_saved:
            Path(self.first).write_text(uri)
            threading.Thread(target=self.lose_when_saved).start()
            self.lose_when_saved = None

    def log_metrics(self, points):
        super().log_metrics(points)
        step = max((point.get("step", 0) for point in points), default=0)
        if self.lose and step >= 12:
            threading.Thread(target=self.lose).start()
            self.lose = None
        if self.join and step >= 30:
            threading.Thread(target=self.join).start()
            self.join = None


def joined(nodes):
    """Another node; Ray's own patience ends after half a minute."""
    node = nodes.add_node(wait=False, num_cpus=1)
    nodes._wait_for_node(node, timeout=600)
    return node


def main(folder, kind):
    cluster._private_token()
    head = {"num_cpus": 1, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)  # else none joins from a thread
    lost = [joined(nodes) for _ in range(2)][1]
    ray.init(address=nodes.address, log_to_driver=False)
    cluster.quiet_data()
    tracker, first, is_joined = Loser(), f"{folder}/first" if kind == "warned" else "", f"{folder}/joined"
    tracker.first = first

    def join():
        joined(nodes)
        Path(is_joined).touch()

    def lose():
        nodes.remove_node(lost)
        tracker.join = join

    tracker.lose = lose
    mode = "streamed" if kind == "warned" else "kept"  # nothing new is read on a node that is about to be taken away
    if kind == "warned":
        tracker.lose, tracker.lose_when_saved = lambda: warn(nodes.address, lost.node_id), lose
        training.ScalingConfig = functools.partial(ScalingConfig, elastic_resize_monitor_interval_s=2.0)
    data, seen = f"{folder}/latents", Path(folder, "seen")
    seen.mkdir()
    model = DiT3DConfig(in_channels=2, input_size=(4, 4, 4), patch_size=(2, 2, 2), hidden_size=24, depth=1, num_heads=2)
    try:
        training.fit(
            Witness(
                model,
                DiffusionConfig(target="x0"),
                (0.0, 0.0),
                (1.0, 1.0),
                seen=str(seen),
                first=first,
                joined=is_joined,
            ),
            open_splits(read_index(data, read_manifest(data, "latents"), COLUMNS), COLUMNS, mode),
            folder=folder,
            name="run",
            trainer=TrainerConfig(
                epochs=12,
                batch_size=7,
                log_every=1,
                checkpoint_every=12 if kind == "warned" else 1,
                validate_every=12 if kind == "warned" else 4,
            ),
            optim=OptimConfig(),
            resources=ResourcesConfig(workers=_WORKERS, min_workers=None if kind == "fixed" else 1, wait_s=5),
            tracker=tracker,
        )
    finally:  # else Ray ends this process with a code of its own
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except WorkMissingError as error:
        sys.exit(error.exit_code if "no room for 3 workers of 1 CPU: 2 fit" in str(error) else str(error))
