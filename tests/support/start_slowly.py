"""Starts a private Ray session, of which the first attempts take too long: a script, with their number as its argument.

Prints how many raylets run when the session has begun.
"""

import sys
import time
from types import SimpleNamespace

import psutil
import ray
from ray._private import node, services

from voxfleet.cli import guarded
from voxfleet.config.resources import ResourcesConfig
from voxfleet.engine.cluster import session

_FAST_CLOCK = SimpleNamespace(**{**vars(time), "monotonic": lambda: 1000 * time.monotonic()})  # Ray's 30 s take 30 ms


def get_no_node(gcs_address, node_id):
    """As for a raylet that has not registered yet."""
    raise RuntimeError("not registered")


def main(slow_attempts):
    init, get_node, attempts = ray.init, services.get_node, iter(range(sys.maxsize))

    def start(**options):
        is_slow = next(attempts) < slow_attempts
        node.time, services.get_node = (_FAST_CLOCK, get_no_node) if is_slow else (time, get_node)
        return init(**options)

    ray.init = start
    with session(ResourcesConfig()):
        names = [child.name() for child in psutil.Process().children()]
        sys.stdout.write(f"{names.count('raylet')} raylet")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(int(sys.argv[1]))))
