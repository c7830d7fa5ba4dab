"""The import-vae job as a script, for `python` and `ray job submit`: --config configs/import-vae/demo.yaml."""

import sys

from voxfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["import-vae", *sys.argv[1:]]))
