"""The cohort job as a script, for `python` and `ray job submit`: --config configs/cohort/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["cohort", *sys.argv[1:]]))
