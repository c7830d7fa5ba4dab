"""Campaigns: their time beside that of their stages, memory, planning and resuming a million rows, and the writer.

python docs/benchmarks/campaign.py FOLDER [campaign|memory|plan|writer ...]   (FOLDER gets packages of random weights)

On a machine without a GPU all stages share the cores: the campaign's time is compared with the processor time of the
stages, summed, over the cores.
"""

import gzip
import io
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from made_up import make_packages
from scipy import ndimage

from voxfleet.data import campaign, nifti
from voxfleet.data.campaign import SCHEMA, CampaignConfig
from voxfleet.engine.units import Ledger
from voxfleet.models import DiT3DConfig
from voxfleet.models.vae import AutoencoderConfig

SEED = DiT3DConfig(input_size=(8, 14, 8), patch_size=(4, 4, 4), hidden_size=384, depth=12, num_heads=6)
TO_64 = AutoencoderConfig(
    channels=(8, 16, 32, 32), num_res_blocks=(0, 1, 1, 1), norm_num_groups=8, use_convtranspose=True
)
TINY = DiT3DConfig(input_size=(8, 10, 8), hidden_size=48, depth=2, num_heads=2)
TO_16 = AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_num_groups=4)


def generate(folder: Path, packages: tuple[str, str], samples: int, *more: str) -> tuple[dict, float, float]:
    """Run a campaign; its summary, the seconds of its whole process, and the most memory (bytes) that it held."""
    command = ["-m", "voxfleet.cli", "generate", "--output", str(folder), "--campaign.samples", str(samples), *more]
    began, most = time.perf_counter(), 0.0
    process = subprocess.Popen([sys.executable, *command, "--model", packages[0], "--autoencoder", packages[1]])
    points = []
    while process.poll() is None:
        held = sum(
            _private(child)
            for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        )
        points.append((time.perf_counter() - began, held))
        most = max(most, held)
        time.sleep(1)
    wall = time.perf_counter() - began
    assert process.returncode == 0
    return json.loads((folder / "summary.json").read_text()), wall, points
