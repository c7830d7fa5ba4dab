"""The evaluate job as a script, for `python` and `ray job submit`: --config configs/evaluate/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
