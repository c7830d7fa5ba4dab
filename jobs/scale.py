"""The scale job as a script, for `python` and `ray job submit`: --config configs/scale/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["scale", *sys.argv[1:]]))
