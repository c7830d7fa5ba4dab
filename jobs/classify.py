"""The classify job as a script, for `python` and `ray job submit`: --config configs/classify/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["classify", *sys.argv[1:]]))
