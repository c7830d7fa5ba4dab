"""The evaluate job: real, reconstructed and synthetic volumes side by side, with sanity figures, on one page."""

from typing import Any

import numpy as np
import ray
import torch

from voxfleet import storage
from voxfleet.config.jobs import EvaluateConfig
from voxfleet.data import nifti
from voxfleet.data.index import read_index
from voxfleet.data.shards import Manifest, read_manifest, read_shard
from voxfleet.data.synthetic import MANIFEST as SYNTHETIC_MANIFEST
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.console import Progress, say
from voxfleet.engine.ingest import open_splits
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import Output, digest
from voxfleet.errors import UserError
from voxfleet.metrics.cohort import mean_correlation, outside_range, pairwise_difference, tissue_counts
from voxfleet.metrics.image import psnr, ssim
from voxfleet.packages import load_autoencoder, read_package_config
from voxfleet.report.figures import loss_curves, mosaic
from voxfleet.report.page import Check, Page, Picture
from voxfleet.tracking.base import Tracker

FIGURES = "figures.json"
_SHOWN = 6  # volumes of a class in a mosaic
_SLACK = 0.15
_READ_AT_ONCE = 64  # images of one task
_REBUILT_AT_ONCE = 4  # a batch of one would take PyTorch's slow convolution on a CPU


def run(config: EvaluateConfig) -> None:
    """Measure, draw and write the page."""
    there = absolute_paths(config, "output", "volumes", "autoencoder", "synthetic")
    manifest = read_manifest(there.volumes, "volumes")
    package = read_package_config(there.autoencoder, "autoencoder")
    rows = _synthetic_rows(there.synthetic)
    compared = {
        "volumes": manifest.digest,
        "autoencoder": package["fingerprint"],
        "synthetic": digest([row["sha256"] for row in rows]),
    }
    output = Output("evaluate", config.output, config)
    if _is_current(config, compared) and output.is_done(FIGURES):
        return
    histories = {run: storage.read_json(storage.join(run, "history.json")) for run in config.runs}
    with job_session(output) as tracker:
        progress = Progress("evaluate", len(rows), "volumes")
        splits = open_splits(read_index(there.volumes, manifest, ("volume",)), ("volume",), "kept")
        real = {name: split.open().read(np.arange(split.rows)) for name, split in splits.items()}
        synthetic = _read_synthetic(there.synthetic, rows, manifest)
        progress.advance(len(rows))
        test = real["test"]["volume"]
        with ray_errors():
            rebuilt, quality = ray.get(_reconstruct.remote(there.autoencoder, ray.put(test)))
        figures = _figures(real["train"]["volume"], synthetic, quality)
        checks = _checks(figures, len(rows))
        sections = _pictures(manifest, real, rebuilt, synthetic, rows)
        sections["Training"] = [Picture(loss_curves(points, run), f"run {run}") for run, points in histories.items()]
        subjects = sum(len(split["label"]) for split in real.values())
        page = Page(
            title="Voxfleet: synthetic brain volumes",
            lead=f"{len(rows)} synthetic volumes beside {subjects} real ones, "
            f"{manifest.shape} voxels. Columns are subjects; rows are the middle sagittal, coronal and axial slice.",
            checks=checks,
            sections=sections,
            commands=list(config.commands),
        )
        _write(config, page, {"compared": compared, **figures}, tracker)
        progress.finish(f"page in {_page_uri(config)}")
        for check in checks:
            say(f"  {'pass' if check.passed else 'FAIL'}  {check.name}: {check.value} (wanted: {check.wanted})")


def _is_current(config: EvaluateConfig, compared: dict[str, str]) -> bool:
    """Whether the page is there and shows what would be compared now; a grown campaign is compared anew."""
    uri = storage.join(config.output, FIGURES)
    there = storage.exists(uri) and storage.exists(_page_uri(config))
    return there and storage.read_json(uri)["compared"] == compared


def _synthetic_rows(folder: str) -> list[dict[str, Any]]:
    uri = storage.join(folder, SYNTHETIC_MANIFEST)
    if not storage.exists(uri):
        raise UserError(f"{folder} holds no finished synthetic dataset (no {SYNTHETIC_MANIFEST}); run generate first")
    rows = read_shard(uri).to_pylist()
    if not all(row["file"] for row in rows):
        raise UserError(f"{folder} holds latents alone; decode them first, or generate with --save.volumes true")
    return rows


def _read_synthetic(folder: str, rows: list[dict[str, Any]], manifest: Manifest) -> np.ndarray:
    """All synthetic volumes, (n, D, H, W), in the order of ``rows``."""
    uris = [storage.join(folder, row["file"]) for row in rows]
    parts = [uris[start : start + _READ_AT_ONCE] for start in range(0, len(uris), _READ_AT_ONCE)]
    with ray_errors():
        return np.concatenate(ray.get([_read_images.remote(part, manifest.shape) for part in parts]))


@ray.remote
def _read_images(uris: list[str], shape: tuple[int, ...]) -> np.ndarray:
    volumes = [nifti.read(uri).get_fdata(dtype=np.float32) for uri in uris]
    for uri, volume in zip(uris, volumes, strict=True):
        if volume.shape != shape:
            raise UserError(f"{uri} has shape {volume.shape}, the real volumes {shape}; compare sets of one grid")
    return np.stack(volumes)


@ray.remote
def _reconstruct(folder: str, volumes: np.ndarray) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Reconstructions (n, D, H, W) from the posterior's mean, and their PSNR and SSIM."""
    autoencoder = load_autoencoder(folder)
    rebuilt: list[torch.Tensor] = []
    quality: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for batch in torch.from_numpy(volumes.copy())[:, None].split(_REBUILT_AT_ONCE):
        out = autoencoder.decode(autoencoder.encode(batch)[0])
        quality["psnr"] += psnr(out, batch).tolist()
        quality["ssim"] += ssim(out, batch).tolist()
        rebuilt.append(out[:, 0])
    return torch.cat(rebuilt).numpy(), quality


def _figures(train: np.ndarray, synthetic: np.ndarray, quality: dict[str, list[float]]) -> dict[str, float]:
    counts = tissue_counts(train), tissue_counts(synthetic)
    return {
        "mean_correlation": mean_correlation(train, synthetic),
        "tissue_outside": outside_range(*counts, slack=_SLACK),
        "tissue_real_min": int(counts[0].min()),
        "tissue_real_max": int(counts[0].max()),
        "tissue_synthetic_min": int(counts[1].min()),
        "tissue_synthetic_max": int(counts[1].max()),
        "pairwise_real": pairwise_difference(train),
        "pairwise_synthetic": pairwise_difference(synthetic),
        "pairwise_ratio": pairwise_difference(synthetic) / pairwise_difference(train),
        "psnr": float(np.mean(quality["psnr"])),
        "psnr_min": float(np.min(quality["psnr"])),
        "ssim": float(np.mean(quality["ssim"])),
    }


def _checks(figures: dict[str, float], samples: int) -> list[Check]:
    f = figures
    return [
        Check(
            "correlation of the mean synthetic with the mean real training volume, inside the brain",
            f"{f['mean_correlation']:.3f}",
            ">= 0.95",
            f["mean_correlation"] >= 0.95,
        ),
        Check(
            "synthetic volumes whose count of voxels above .3 is outside the real range +- 15 %",
            f"{f['tissue_outside']} of {samples} (real {f['tissue_real_min']}-{f['tissue_real_max']}, synthetic "
            f"{f['tissue_synthetic_min']}-{f['tissue_synthetic_max']})",
            "0",
            f["tissue_outside"] == 0,
        ),
        Check(
            "mean absolute pairwise difference, synthetic over real",
            f"{f['pairwise_ratio']:.2f} ({f['pairwise_synthetic']:.4f} / {f['pairwise_real']:.4f})",
            ">= 0.5",
            f["pairwise_ratio"] >= 0.5,
        ),
        Check(
            "PSNR of reconstructed test volumes (whole volume)",
            f"{f['psnr']:.1f} dB (lowest {f['psnr_min']:.1f}; SSIM {f['ssim']:.3f})",
            ">= 25 dB",
            f["psnr"] >= 25,
        ),
    ]


def _pictures(
    manifest: Manifest,
    real: dict[str, dict[str, np.ndarray]],
    rebuilt: np.ndarray,
    synthetic: np.ndarray,
    rows: list[dict[str, Any]],
) -> dict[str, list[Picture]]:
    sections: dict[str, list[Picture]] = {"Real": [], "Reconstructed": [], "Synthetic": []}
    for label, name in enumerate(manifest.classes):
        train = real["train"]["volume"][real["train"]["label"] == label][:_SHOWN]
        sections["Real"].append(Picture(mosaic(train, [f"real {name}"] * len(train)), f"{name}: training volumes"))
        mine = real["test"]["label"] == label
        pairs = [*zip(real["test"]["volume"][mine], rebuilt[mine], strict=True)][: _SHOWN // 2]
        both = np.stack([volume for pair in pairs for volume in pair])
        sections["Reconstructed"].append(
            Picture(mosaic(both, ["test", "rebuilt"] * len(pairs)), f"{name}: test volumes and their reconstruction")
        )
        chosen = [index for index, row in enumerate(rows) if row["class"] == name][:_SHOWN]
        if chosen:
            titles = [rows[index]["sample_id"] for index in chosen]
            sections["Synthetic"].append(Picture(mosaic(synthetic[chosen], titles), f"{name}: synthetic volumes"))
    return sections


def _page_uri(config: EvaluateConfig) -> str:
    return config.page or storage.join(config.output, "report.html")


def _write(config: EvaluateConfig, page: Page, figures: dict[str, Any], tracker: Tracker) -> None:
    """Pictures, page, and last the figures, which mark the folder as complete."""
    for section, pictures in page.sections.items():
        for index, picture in enumerate(pictures):
            name = f"{section.lower()}-{index}.png"
            storage.write_bytes(storage.join(config.output, name), picture.png)
    storage.write_bytes(_page_uri(config), page.html().encode())
    tracker.log_metrics([{name: value for name, value in figures.items() if name != "compared"}])
    tracker.log_artifact(_page_uri(config))
    storage.write_json(storage.join(config.output, FIGURES), figures)
