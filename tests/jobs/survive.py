"""Jobs on a cluster of three nodes, of which one is lost on the way and another joins: a script, as its driver.

Its argument is JSON: the folder to run in, and of each job the arguments, the ledger, and after how many fragments in
it a node is lost. Prints, for each, the exit code and how many fragments there were.
"""

import json
import os
import sys
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from voxfleet.cli import main
from voxfleet.engine import cluster


class Loss(threading.Thread):
    """Loses a node as soon as there are so many fragments, and lets another one join."""

    def __init__(self, nodes, node, ledger, fragments):
        super().__init__(daemon=True)
        self.nodes, self.node, self.ledger, self.fragments = nodes, node, Path(ledger), fragments
        self.found, self.ended = 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            found = len(list(self.ledger.glob("*.parquet")))
            if found >= self.fragments:
                self.found = found
                self.nodes.remove_node(self.node, allow_graceful=False)
                self.node = self.nodes.add_node(num_cpus=1)
                return


def survive(folder, jobs):
    """Run each job, and lose a node in it."""
    os.chdir(folder)
    cluster._private_token()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = [nodes.add_node(num_cpus=1) for _ in range(2)][1]
    ray.init(address=nodes.address, log_to_driver=False)
    cluster.quiet_data()
    ended = {}
    try:
        for job in jobs:
            loss = Loss(nodes, node, job["ledger"], job["fragments"])
            loss.start()
            code = main(job["arguments"])
            loss.ended.set()
            loss.join()
            node, ended[job["arguments"][0]] = loss.node, {"code": code, "lost_at": loss.found}
    finally:
        ray.shutdown()
        nodes.shutdown()
    sys.stdout.write(json.dumps(ended) + "\n")


if __name__ == "__main__":
    survive(**json.loads(sys.argv[1]))
