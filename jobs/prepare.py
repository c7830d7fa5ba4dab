"""The prepare job as a script, for `python` and `ray job submit`: --config configs/prepare/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
