"""Holds a Ray cluster of several nodes on this machine, for as long as its standard input is open: a script.

Its argument is JSON: what the head, which is the drivers' node, and each other node has.

Prints the cluster's address and where its token is, as JSON. For each line that it reads, it kills a node, but the
head, on which a process runs whose title matches the line, lets another one join, and prints "lost", or else "none".
"""

import contextlib
import json
import os
import re
import sys

import psutil
from ray.cluster_utils import Cluster

from voxfleet.engine import cluster


def busy(node, title):
    """Whether a process of the node has a title like this."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for child in raylet.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it is just ending
            if re.search(title, " ".join(child.cmdline())):
                return True
    return False


def joined(nodes, **node):
    """Another node; Ray's own patience ends after half a minute."""
    node = nodes.add_node(wait=False, **node)
    nodes._wait_for_node(node, timeout=600)
    return node


def main(head, *others):
    cluster._private_token()
    nodes = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    others = [joined(nodes, **node) for node in others]
    where = {"address": nodes.address, "token": os.environ["RAY_AUTH_TOKEN_PATH"]}
    where["nodes"] = [nodes.head_node.node_id, *(node.node_id for node in others)]
    sys.stdout.write(json.dumps(where) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        lost = next((node for node in others if busy(node, line.strip())), None)
        if lost:
            nodes.remove_node(lost, allow_graceful=False)
            others = [*(node for node in others if node is not lost), joined(nodes, num_cpus=1)]
        sys.stdout.write("lost\n" if lost else "none\n")
        sys.stdout.flush()
    nodes.shutdown()


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
