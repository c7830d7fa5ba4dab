"""The train job as a script, for `python` and `ray job submit`: --config configs/train/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
