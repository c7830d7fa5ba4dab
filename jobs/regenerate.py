"""The regenerate job as a script, for `python` and `ray job submit`: --config configs/regenerate/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["regenerate", *sys.argv[1:]]))
