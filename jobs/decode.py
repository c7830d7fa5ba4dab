"""The decode job as a script, for `python` and `ray job submit`: --config configs/decode/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["decode", *sys.argv[1:]]))
