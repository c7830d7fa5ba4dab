"""The encode job as a script, for `python` and `ray job submit`: --config configs/encode/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["encode", *sys.argv[1:]]))
