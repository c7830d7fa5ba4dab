"""A dataset of synthetic volumes: how one is judged and written, and the files about all of them."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from voxfleet import __version__, storage
from voxfleet.data import bids, nifti
from voxfleet.data.campaign import Sample
from voxfleet.data.nifti import check_dtype
from voxfleet.data.quality import Limits, verdict, volume_checks

MANIFEST, REJECTED = "manifest.parquet", "rejected.parquet"
LATENTS, FIGURES, SUMMARY = "latents", "figures", "summary.json"
RELEASE = "release.json"  # what evaluate says of the set
SCRATCH = ".voxfleet/unfinished"
PUTS_AT_ONCE = 16  # samples that a writer judges and writes at once, where they go to a bucket


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """What is written of each sample.

    Args:
        volumes: NIfTI volumes, as a BIDS derivative dataset.
        latents: latent shards, in the folder latents of the output.
        dtype: of the voxels: int16 with a slope, or float32.
        compress: .nii.gz; false gives .nii, which are larger and written faster.
        shard_size: samples that are committed together, and make one latent shard.
    """

    volumes: bool = True
    latents: bool = False
    dtype: str = "int16"
    compress: bool = True
    shard_size: int = 64

    def __post_init__(self) -> None:
        if not (self.volumes or self.latents):
            raise ValueError("volumes and latents are both false; set one of them to true")
        check_dtype(self.dtype)
        if self.shard_size < 1:
            raise ValueError(f"shard_size is {self.shard_size}; it must be at least 1")


def sidecar_file(image: str) -> str:
    """Path of an image's sidecar."""
    return f"{image.partition('.nii')[0]}.json"


def image_file(sample: Sample, save: SaveConfig, suffix: str) -> str:
    """Path of a sample's image in the dataset; ``suffix`` is the BIDS suffix of the training images."""
    name = f"{sample.subject_id}_desc-synth_{suffix}.nii{'.gz' if save.compress else ''}"
    return f"{sample.subject_id}/anat/{name}"


@dataclass(frozen=True)
class Writer:
    """Judges the samples of a batch, and writes those that are kept.

    Attributes:
        folder: of the dataset; None writes nothing, but counts what would be.
        save: what is written of each.
        allowed: smallest and largest value of each check, for those that are looked at.
        geometry: of the volumes.
        suffix: BIDS suffix of the volumes.
        sidecar: what the sidecars of all samples say.
    """

    folder: str | None
    save: SaveConfig
    allowed: Limits
    geometry: Mapping[str, Any]
    suffix: str
    sidecar: Mapping[str, Any]

    def __call__(
        self, batch: list[Sample], made: Mapping[str, Any], volumes: np.ndarray | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a batch (``campaign.SCHEMA``), with a ``reason`` for each sample that is rejected.

        Args:
            batch: the samples.
            made: how they were made (columns of SCHEMA), and ``checks``, what was measured of each latent.
            volumes: (B, W, H, D), the axes of each in reverse, as NIfTI stores it; None where latents are all.
        """
        how = {name: value for name, value in made.items() if name != "checks"}
        each = itertools.repeat(None, len(batch)) if volumes is None else (volume.T for volume in volumes)
        asked = (batch, made["checks"], each)
        if volumes is None or self.folder is None or storage.is_local(self.folder):
            rows = list(map(self._row, *asked))
        else:  # a bucket answers each request after a while, but many at once
            with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
                rows = list(pool.map(self._row, *asked))
        return [{**how, **row} for row in rows]

    def _row(self, sample: Sample, checks: dict[str, float], volume: np.ndarray | None) -> dict[str, Any]:
        if volume is not None:
            measured = volume_checks(volume, self.geometry["spacing_mm"])
            checks = {**measured, **checks, "finite": min(measured["finite"], checks["finite"])}
        row = {
            "sample_id": sample.sample_id,
            "class": sample.class_name,
            "index": sample.index,
            "attempt": sample.attempt,
            "seed": sample.seed,
            "checks": checks,
            "reason": verdict(checks, self.allowed),
        }
        return row if row["reason"] or volume is None else {**row, **self._write(sample, volume)}

    def _write(self, sample: Sample, volume: np.ndarray) -> dict[str, Any]:
        data = nifti.encode(volume, self.affine, dtype=self.save.dtype, compress=self.save.compress)
        file = image_file(sample, self.save, self.suffix)
        if self.folder is None:
            return {"file": file, "bytes": len(data)}
        sidecar = {
            "Description": f"Synthetic T1-weighted volume of class {sample.class_name}; not an image of a person",
            "Class": sample.class_name,
            "Seed": sample.seed,
            **self.sidecar,
        }
        write = functools.partial(storage.write_bytes, scratch=storage.join(self.folder, SCRATCH))
        contents = {"sidecar_sha256": (sidecar_file(file), bids.json_bytes(sidecar)), "sha256": (file, data)}
        hashes = {key: write(storage.join(self.folder, name), content) for key, (name, content) in contents.items()}
        return {"file": file, "bytes": len(data), **hashes}

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What makes another one like it, in another process."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @functools.cached_property
    def affine(self) -> np.ndarray:
        """Voxel to RAS mm, (4, 4)."""
        return np.array(self.geometry["affine"])


def common_sidecar(sampler: Mapping[str, Any], model: str, autoencoder: str) -> dict[str, Any]:
    """What the sidecars of all samples say: the sampler, and the fingerprints of the packages."""
    return {
        "SkullStripped": True,
        "Synthetic": True,
        "Sources": [],
        "Sampler": dict(sampler),
        "ModelFingerprint": model,
        "AutoencoderFingerprint": autoencoder,
        "SoftwareVersion": f"voxfleet {__version__}",
    }


_README = """# Synthetic brain volumes

These volumes were drawn from a generative model by Voxfleet. THEY ARE NOT IMAGES OF PEOPLE: no subject in this dataset
exists, and nothing in it may be used for a diagnosis.

- `participants.tsv` gives the class that each volume was asked for.
- `manifest.parquet` gives the seed, file, sha256 and checks of each volume; `voxfleet regenerate SAMPLE_ID` makes one
  again.
- Intensities are scaled to [0, 1]; the grid is that of the model's training volumes (mm, RAS).
"""


def dataset_files(rows: pa.Table, classes: Sequence[str], model: str, autoencoder: str) -> dict[str, bytes]:
    """The files about a BIDS dataset of synthetic volumes, by their names.

    Args:
        rows: of all samples (``campaign.SCHEMA``).
        classes: of the model.
        model: fingerprint of the model.
        autoencoder: fingerprint of the autoencoder.
    """
    subjects = [file.partition("/")[0] for file in rows["file"].to_pylist()]
    people = [
        {"participant_id": subject, "group": group}
        for subject, group in zip(subjects, rows["class"].to_pylist(), strict=True)
    ]
    levels = {name: f"asked for as class {name}" for name in classes}
    hidden = (
        MANIFEST,
        REJECTED,
        SUMMARY,
        RELEASE,
        LATENTS,
        FIGURES,
    )  # with a slash the validator does not see the folders
    return {
        "README.md": _README.encode(),
        ".bidsignore": "".join(f"{name}\n" for name in hidden).encode(),
        "participants.tsv": bids.participants_tsv(people),
        "participants.json": bids.json_bytes({"group": {"Description": "class of the sample", "Levels": levels}}),
        "dataset_description.json": bids.dataset_description(
            "Synthetic brain volumes",
            "derivative",
            description=f"samples of model {model}, decoded by autoencoder {autoencoder}",
            source_datasets=[{"URL": f"urn:sha256:{model}"}],
        ),
    }
