"""The model-summary job as a script, for `python` and `ray job submit`: --config configs/model-summary/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["model-summary", *sys.argv[1:]]))
