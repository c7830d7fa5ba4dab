"""What evaluate costs: time and memory for n real against n synthetic volumes of 64x112x64.

python docs/benchmarks/evaluation.py FOLDER N [N ...]   (FOLDER gets made-up volumes and an autoencoder)

Thirty-two people are simulated; each volume is one of them, moved by a voxel and noisy: what is measured does not
depend on who they are.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch
from campaign import TO_64, private_mb
from nibabel import Nifti1Image

from voxfleet import storage
from voxfleet.data import nifti
from voxfleet.data.cohort import SimulationConfig, Simulator
from voxfleet.data.geometry import geometry_of
from voxfleet.data.preprocess import PreprocessConfig, preprocess
from voxfleet.data.shards import Manifest, shard_name, table_bytes, tensor_table, write_manifest
from voxfleet.models.vae import build_autoencoder
from voxfleet.packages import architecture, is_complete, write_package

SHAPE, SPACING, PEOPLE, PER_SHARD, EVERY_S = (64, 112, 64), (2.75, 1.9, 2.75), 32, 50, 2.0
CLASSES = ("HC", "TLE")


def people(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The simulated people (PEOPLE, *SHAPE) and their affine."""
    file = folder / "people.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        simulator = Simulator(SimulationConfig(spacing_mm=3.0))
        config = PreprocessConfig(spacing_mm=SPACING, shape=SHAPE, center="world")
        subjects = [simulator.simulate(index) for index in range(PEOPLE)]
        images = [nifti.encode(subject.image, subject.affine, compress=False) for subject in subjects]
        volumes = [preprocess(Nifti1Image.from_bytes(image), config) for image in images]
        np.savez(file, volumes=np.stack([volume.data for volume in volumes]), affine=volumes[0].affine)
    found = np.load(file)
    return found["volumes"], found["affine"]


def variant(volumes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Somebody, moved and noisy."""
    moved = np.roll(volumes[rng.integers(PEOPLE)], rng.integers(-1, 2, 3), axis=(0, 1, 2))
    return np.clip(moved + (moved > 0) * 0.02 * rng.standard_normal(SHAPE, dtype=np.float32), 0, 1)


def make_real(folder: Path, n: int, volumes: np.ndarray, affine: np.ndarray) -> None:
    """Volume shards of ``n`` people, four fifths of them in split train."""
    rng, shards = np.random.default_rng(0), []
    splits = [("train", "train", "train", "train", "test")[number % 5] for number in range(n)]
    for index, start in enumerate(range(0, n, PER_SHARD)):
        numbers = range(start, min(start + PER_SHARD, n))
        columns = {
            "subject_id": [f"sub-{number:05d}" for number in numbers],
            "label": [number % 2 for number in numbers],
            "split": [splits[number] for number in numbers],
            "source": ["simulated"] * len(numbers),
            "affine": [affine.flatten().tolist()] * len(numbers),
        }
        table = tensor_table(columns, {"volume": np.stack([variant(volumes, rng) for _ in numbers])})
        sha256 = storage.write_bytes(storage.join(str(folder), shard_name(index)), table_bytes(table))
        shards.append({"file": shard_name(index), "rows": len(numbers), "sha256": sha256})
    manifest = Manifest(
        kind="volumes",
        shape=SHAPE,
        classes=CLASSES,
        counts={},
        mean=[0.0],
        std=[1.0],
        geometry=geometry_of(affine),
        limits={},
        shards=shards,
    )
    write_manifest(str(folder), manifest)


def make_synthetic(folder: Path, n: int, volumes: np.ndarray, affine: np.ndarray) -> None:
    """A dataset of ``n`` images, as generate lists them."""
    rng, rows = np.random.default_rng(1), []
    for number in range(n):
        file = f"{number:05d}.nii.gz"
        sha256 = storage.write_bytes(storage.join(str(folder), file), nifti.encode(variant(volumes, rng), affine))
        rows.append({"sample_id": f"syn-{number}", "class": CLASSES[number % 2], "file": file, "sha256": sha256})
    storage.write_bytes(storage.join(str(folder), "manifest.parquet"), table_bytes(pa.Table.from_pylist(rows)))


def make_autoencoder(folder: Path) -> None:
    """A package of random weights."""
    if not is_complete(str(folder)):
        torch.manual_seed(0)
        weights = build_autoencoder(TO_64).state_dict()
        write_package(str(folder), "autoencoder", weights, {"architecture": architecture(TO_64)})


def evaluated(folder: Path, n: int) -> dict[str, float]:
    """Seconds of evaluate and the most memory (GB) of all its processes, with what they share."""
    sets = {"volumes": folder / f"real-{n}", "synthetic": folder / f"synthetic-{n}", "autoencoder": folder / "vae"}
    paths = [part for name, path in sets.items() for part in (f"--{name}", str(path))]
    command = [sys.executable, "-m", "voxfleet.cli", "evaluate", *paths, "--output", str(folder / f"report-{n}")]
    shared = psutil.virtual_memory().shared
    began, most = time.perf_counter(), 0.0
    process = subprocess.Popen([*command, "--release.enforce", "false"], cwd=folder)
    me = psutil.Process(process.pid)
    while process.poll() is None:
        own = sum(map(private_mb, [me, *me.children(recursive=True)]))
        most = max(most, own / 1e3 + (psutil.virtual_memory().shared - shared) / 1e9)  # Ray's object store
        time.sleep(EVERY_S)
    assert process.returncode == 0
    return {"n": n, "minutes": (time.perf_counter() - began) / 60, "memory_gb": most}


def main() -> None:
    """Make what is missing, and print a line for each n."""
    folder, sizes = Path(sys.argv[1]).resolve(), [int(n) for n in sys.argv[2:]]
    volumes, affine = people(folder)
    make_autoencoder(folder / "vae")
    for n in sizes:
        for name, make in (("real", make_real), ("synthetic", make_synthetic)):
            if not (target := folder / f"{name}-{n}").exists():
                make(target, n, volumes, affine)
        print(json.dumps(evaluated(folder, n)), flush=True)


if __name__ == "__main__":
    main()
