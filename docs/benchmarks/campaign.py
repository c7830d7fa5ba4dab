"""Campaigns: their time beside that of their stages, their memory, planning and resuming a million rows, the writer.

python docs/benchmarks/campaign.py FOLDER [stages|memory|plan|writer ...]   (FOLDER gets packages of random weights)

On a machine without a GPU all stages share the cores: the time of a campaign is compared with the processor time of its
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
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pyarrow as pa
from made_up import make_packages
from scipy import ndimage

from voxfleet.data import campaign, nifti
from voxfleet.data.campaign import SCHEMA, CampaignConfig
from voxfleet.data.quality import volume_checks
from voxfleet.data.shards import table_bytes
from voxfleet.engine.units import Ledger
from voxfleet.models import DiT3DConfig
from voxfleet.models.vae import AutoencoderConfig

SEED = DiT3DConfig(input_size=(8, 14, 8), patch_size=(4, 4, 4), hidden_size=384, depth=12, num_heads=6)
TO_64 = AutoencoderConfig(
    channels=(8, 16, 32, 32), num_res_blocks=(0, 1, 1, 1), norm_num_groups=8, use_convtranspose=True
)
TINY = DiT3DConfig(input_size=(8, 10, 8), hidden_size=48, depth=2, num_heads=2)
TO_16 = AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_num_groups=4)
ROWS, UNIT = 1_000_000, 64
PER_CLASS = 400  # samples, so that the start of all processes is a small part


def generate(
    folder: Path, packages: tuple[str, str], *more: str, every_s: float | None = None
) -> tuple[dict, float, list[tuple[float, float]]]:
    """Run a campaign: its summary, the seconds of its process, and the memory (MB) of all its processes over time.

    Looking at the memory takes a tenth of a core, so that it is asked for.
    """
    command = [sys.executable, "-m", "voxfleet.cli", "generate", "--output", str(folder), *more]
    began, points = time.perf_counter(), []
    process = subprocess.Popen([*command, "--model", packages[0], "--autoencoder", packages[1]])
    me = psutil.Process(process.pid)
    while every_s and process.poll() is None:
        points.append((time.perf_counter() - began, sum(map(private_mb, [me, *me.children(recursive=True)]))))
        time.sleep(every_s)
    process.wait()
    assert process.returncode == 0
    return json.loads((folder / "summary.json").read_text()), time.perf_counter() - began, points


def private_mb(process: psutil.Process) -> float:
    """Memory that is this process's own, in MB; 0 for one that has just ended."""
    try:
        return process.memory_full_info().uss / 1e6
    except psutil.Error:
        return 0.0


def stages(folder: Path) -> None:
    """The time of a campaign over the processor time of its stages."""
    packages = make_packages(str(folder / "seed"), SEED, TO_64)
    cores = len(os.sched_getaffinity(0))
    more = ["--campaign.samples", str(PER_CLASS), "--sampler.steps", "20", "--save.latents", "true"]
    summary, wall, _ = generate(folder / "stages", packages, *more)
    spent = summary["last_run"]["stages"]
    cpu = sum(stage["cpu_s"] for stage in spent.values())
    inside = summary["last_run"]["wall_s"]
    print(f"  {2 * PER_CLASS} volumes of 64x112x64, {cores} cores: {wall:.1f} s, {wall - inside:.1f} s around the work")
    for name, stage in spent.items():
        print(f"  {name}: {stage['calls']} batches, {stage['wall_s']:.1f} s, {stage['cpu_s']:.1f} s of processors")
    share, alone = (seconds * cores / cpu for seconds in (wall, inside))
    print(f"  over the stages' processor time / cores: {share:.3f}; without start and end {alone:.3f}")


def memory(folder: Path) -> None:
    """Memory of all processes while 5,000 samples are made."""
    packages = make_packages(str(folder / "tiny"), TINY, TO_16)
    more = ["--campaign.samples", "2500", "--sampler.steps", "10", "--save.latents", "true"]
    summary, wall, points = generate(folder / "memory", packages, *more, every_s=1.0)
    begun = wall - summary["last_run"]["wall_s"]
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        at = begun + share * (wall - begun)
        print(f"  after {share:.0%} of {wall:.0f} s: {min(points, key=lambda p: abs(p[0] - at))[1]:.0f} MB")


def plan(folder: Path) -> None:
    """Planning a million rows, of which all, or all but the last thousand, are there."""
    ledger = Ledger(str(folder / "ledger"))
    if not ledger.done():
        _fill(ledger)
    config = CampaignConfig(samples=ROWS // 2)
    began = time.perf_counter()
    fresh = campaign.plan(config, ("HC", "TLE"), SCHEMA.empty_table())
    batches = sum(1 for _ in fresh.missing(64, 8))
    print(f"  planned from nothing: {batches} batches in {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    table = ledger.table(SCHEMA, ["class", "index", "attempt", "reason"])
    resumed = campaign.plan(config, ("HC", "TLE"), table)
    left = [sample for batch in resumed.missing(64, 8) for sample in batch]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    taken = time.perf_counter() - began
    print(f"  resumed from {len(ledger.done())} fragments: {len(left)} left, {taken:.1f} s, {most:.2f} GB")


def _fill(ledger: Ledger) -> None:
    Path(ledger.folder).mkdir(parents=True)
    for start in range(0, ROWS // 2 - 500, UNIT // 2):
        index = range(start, min(start + UNIT // 2, ROWS // 2 - 500))
        rows = [
            {
                "sample_id": f"syn-{name}-{i:07d}", "class": name, "index": i, "attempt": 0, "seed": i * 7919,
                "reason": "", "file": f"sub-syn{name}{i:07d}/anat/sub-syn{name}{i:07d}_desc-synth_T1w.nii.gz",
                "sha256": f"{i:064x}", "bytes": 335_000, "checks": {"brain_ml": 1100.0 + i % 97, "finite": 1.0},
                "batch_size": 64, "decode_batch_size": 8, "threads": 1, "dtype": "float32", "device": "cpu",
            }
            for name in ("HC", "TLE")
            for i in index
        ]  # fmt: skip
        data = table_bytes(pa.Table.from_pylist(rows, schema=SCHEMA))
        Path(ledger.folder, f"syn-HC-{start:07d}.0.parquet").write_bytes(data)


def writer(_: Path) -> None:
    """Encoding and checking of one volume of 64x112x64, beside nibabel, on one core."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (64, 112, 64)], indexing="ij"))
    smooth = ndimage.gaussian_filter(rng.standard_normal(grid.shape[1:]), 3)
    head = np.clip(0.5 + 8 * smooth + 0.01 * rng.standard_normal(smooth.shape), 0, 1)
    volume = np.asfortranarray(np.where((grid**2).sum(axis=0) < 0.8, head, 0).astype(np.float32))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])

    def nibabel() -> bytes:
        image = nib.Nifti1Image(volume, affine)
        image.header.set_data_dtype(np.int16)
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as stream:
            image.to_stream(stream)
        return buffer.getvalue()

    ways: dict[str, Callable[[], object]] = {
        "nibabel, .nii.gz at level 1": nibabel,
        ".nii.gz": lambda: nifti.encode(volume, affine),
        ".nii": lambda: nifti.encode(volume, affine, compress=False),
        "checks": lambda: volume_checks(volume, (2, 2, 2)),
    }
    for name, way in ways.items():
        seconds = min(_timed(way) for _ in range(30))
        print(f"  {name}: {seconds * 1e3:.2f} ms, {volume.size * 2 / 1e6 / seconds:.0f} MB/s of int16")


def _timed(way: Callable[[], object]) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began


if __name__ == "__main__":
    where, *asked = sys.argv[1:]
    for name in asked or ("writer", "plan", "stages", "memory"):
        print(f"{name}:")
        {"stages": stages, "memory": memory, "plan": plan, "writer": writer}[name](Path(where))
