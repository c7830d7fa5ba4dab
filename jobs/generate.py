"""The generate job as a script, for `python` and `ray job submit`: --config configs/generate/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
