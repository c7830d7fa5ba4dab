"""The tune job as a script, for `python` and `ray job submit`: --config configs/tune/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
