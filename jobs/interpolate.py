"""The interpolate job as a script, for `python` and `ray job submit`: --config configs/interpolate/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["interpolate", *sys.argv[1:]]))
