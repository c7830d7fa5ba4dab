"""The doctor job as a script, for `python` and `ray job submit`: --config configs/doctor/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
