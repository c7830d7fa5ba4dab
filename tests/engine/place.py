"""What runs where on a cluster: a script, as a driver with its address. Prints ids of nodes, as JSON."""

import json
import sys

import numpy as np
import ray

from voxfleet.config.resources import ResourcesConfig
from voxfleet.engine.cluster import session
from voxfleet.engine.ingest import stream
from voxfleet.engine.pipeline import Pipeline, Stage

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
WORKERS = 6


class Draw:
    """Gives the node that it is on."""

    def __call__(self, batch):
        return {"node": here()}


class Write:
    """Tells where a batch was drawn, and where it was written."""

    def __call__(self, batch, node):
        return [node, here()]


def here():
    return ray.get_runtime_context().get_node_id()


class Rows:
    """Stands for an index: each row tells where it was read."""

    def read(self, rows, columns):
        return {"label": rows, "node": np.array([here()] * len(rows))}


@ray.remote(num_gpus=1)
def streamed():
    blocks = stream(ray.put(Rows()), (), np.arange(6), [2, 2, 2])
    return [node for block in blocks for node in block["node"].tolist()]


def main(address):
    batches = iter(range(20))
    with session(ResourcesConfig(address=address)):
        stages = [
            Stage(name="draw", kind=Draw, arguments=(), gives=("node",), workers=2, gpus=1),
            Stage(name="write", kind=Write, arguments=(), takes=("node",), workers=WORKERS, cpus=0),
        ]
        with Pipeline(stages) as pipeline:
            hosts = [ray.get([actor.handle.up.remote() for actor in pool.actors]) for pool in pipeline._pools]
            one = pipeline.run(lambda: None if pipeline._running else next(batches, None))  # at a time
            parcels = [parcel.result for parcel in one]
        read = ray.get(streamed.remote())
    sys.stdout.write(json.dumps({"parcels": parcels, "hosts": hosts, "read": read}))


if __name__ == "__main__":
    main(sys.argv[1])
