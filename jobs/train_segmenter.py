"""The train-segmenter job, for `python` and `ray job submit`: --config configs/train-segmenter/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-segmenter", *sys.argv[1:]]))
