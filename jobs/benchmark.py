"""The benchmark job as a script, for `python` and `ray job submit`: --config configs/benchmark/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
