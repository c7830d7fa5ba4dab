"""The latents job as a script, for `python` and `ray job submit`: --config configs/latents/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["latents", *sys.argv[1:]]))
