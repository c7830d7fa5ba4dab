"""The generate job: a campaign of synthetic volumes, in a pool of actors that hold both models."""

import dataclasses
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from voxfleet import __version__, storage
from voxfleet.config.generation import GenerateConfig
from voxfleet.data import bids, nifti
from voxfleet.data.campaign import Sample, expand, units
from voxfleet.data.preprocess import volume_checks
from voxfleet.data.shards import read_shard, table_bytes
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import sampler_table
from voxfleet.engine.cluster import gpus_per_worker
from voxfleet.engine.console import Progress, say
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import LEDGER, Output
from voxfleet.engine.units import Ledger, Pool, Rows, run_units
from voxfleet.errors import UserError, WorkMissingError
from voxfleet.packages import copy_package, load_autoencoder, load_model, read_package_config
from voxfleet.tracking.record import resolve_model

MANIFEST = "manifest.parquet"
_PACKAGES = ".voxfleet/packages"


def run(config: GenerateConfig) -> None:
    """Make what the campaign lacks."""
    with tempfile.TemporaryDirectory() as downloads:
        _run(config, downloads)


def _run(config: GenerateConfig, downloads: str) -> None:
    # registered packages may be named: the output belongs to their names, the work is done with their folders
    located = _located(config, downloads)
    there = absolute_paths(located, "output", "model", "autoencoder")
    model = read_package_config(located.model, "model")
    autoencoder = read_package_config(located.autoencoder, "autoencoder")
    if model["autoencoder"] is None:
        raise UserError(
            f"{config.model} was trained on latents that were imported without their autoencoder, so its samples "
            "cannot be decoded; import the latents again with --autoencoder, and train on them"
        )
    if model["autoencoder"] != autoencoder["fingerprint"]:
        raise UserError(
            f"{config.model} was trained on latents of autoencoder {str(model['autoencoder'])[:12]}, but "
            f"{config.autoencoder} is {autoencoder['fingerprint'][:12]}; give the autoencoder that made its latents"
        )
    _check_sampler(config, model)
    samples = expand(config.campaign, tuple(model["classes"]))
    inputs = {"model": model["fingerprint"], "autoencoder": autoencoder["fingerprint"]}
    output = Output("generate", config.output, config, inputs)
    output.check()
    ledger = Ledger(storage.join(there.output, LEDGER))
    committed = _committed(ledger)
    missing = [sample for sample in samples if sample.sample_id not in committed]
    if not missing and _in_manifest(config.output) == set(committed):
        say(f"generate: {config.output} is complete, nothing to do")
        output.send_unsent()
        return
    with job_session(output, workers=True) as tracker:
        there = _shared(there, downloads)
        gpus = gpus_per_worker(config.resources)
        progress = Progress("generate", len(samples), "volumes")
        progress.skip(len(samples) - len(missing))
        made = run_units(
            units(missing, config.batch_size),
            Generator,
            ledger,
            progress,
            pool=Pool(workers=config.resources.workers, cpus=config.resources.cpus_per_worker, gpus=gpus),
            arguments=(there, gpus > 0),
            weight=len,
        )
        _check_made(config, len(samples), [row for unit in made.values() for row in unit if row.get("error")])
        names = tuple(model["classes"])
        rows = sorted(_committed(ledger).values(), key=lambda row: (names.index(row["class"]), row["index"]))
        _write_dataset(there, model, autoencoder["fingerprint"], rows)
        tracker.log_metrics([{"volumes": len(rows)}])
        progress.finish(f"{len(rows)} synthetic volumes in {config.output}")


def _located(config: GenerateConfig, downloads: str) -> GenerateConfig:
    """``config`` with the folders of registered packages."""
    model, autoencoder = (
        resolve_model(uri, config.tracking, storage.join(downloads, key))
        for key, uri in (("model", config.model), ("autoencoder", config.autoencoder))
    )
    return dataclasses.replace(config, model=model, autoencoder=autoencoder)


def _shared(config: GenerateConfig, downloads: str) -> GenerateConfig:
    """``config`` with packages that were downloaded to this machine put where all workers can read them."""
    model, autoencoder = (
        copy_package(folder, storage.join(config.output, _PACKAGES, key)) if folder.startswith(downloads) else folder
        for key, folder in (("model", config.model), ("autoencoder", config.autoencoder))
    )
    return dataclasses.replace(config, model=model, autoencoder=autoencoder)


def _committed(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """The committed rows by sample id."""
    return {row["sample_id"]: row for unit in ledger.done() for row in ledger.rows(unit)}


def _in_manifest(folder: str) -> set[str]:
    """Ids of the samples in the manifest, if there is one."""
    uri = storage.join(folder, MANIFEST)
    return set(read_shard(uri)["sample_id"].to_pylist()) if storage.exists(uri) else set()


def _check_made(config: GenerateConfig, samples: int, failed: Rows) -> None:
    """Make sure that every sample was made.

    Raises:
        WorkMissingError: if some could not be; what was made stays.
    """
    if failed:
        raise WorkMissingError(
            f"{len(failed)} of {samples} samples are missing in {config.output} (first: {failed[0]['sample_id']}, "
            f"{failed[0]['error']}); lower sampler.guidance_scale, or train the model further"
        )


def _check_sampler(config: GenerateConfig, model: dict[str, Any]) -> None:
    try:
        sampler_table(config.sampler, Process(DiffusionConfig(**model["diffusion"])))
    except ValueError as error:
        raise UserError(f"sampler.{error}") from error


class Generator:
    """An actor that draws, decodes and writes batches of samples.

    Every batch has the same shape (short ones are padded), a sample always the same place in it, and the number of
    threads is fixed, so that a sample is the same bit for bit whenever it is made.
    """

    def __init__(self, config: GenerateConfig, gpu: bool) -> None:
        torch.set_num_threads(config.resources.cpus_per_worker)
        self.config = config
        device = "cuda" if gpu else "cpu"
        self.model = load_model(config.model, device, precision=config.precision)
        self.autoencoder = load_autoencoder(config.autoencoder, device)

    def __call__(self, _: str, batch: list[dict[str, Any]]) -> Rows:
        """Make one batch: a row for each sample, with an ``error`` for one that is not finite."""
        samples = [Sample(**fields) for fields in batch]
        places = [sample.index % self.config.batch_size for sample in samples]
        padded = [samples[0]] * self.config.batch_size
        for place, sample in zip(places, samples, strict=True):
            padded[place] = sample
        latents = self.model.sample([s.label for s in padded], [s.seed for s in padded], self.config.sampler)
        volumes = self.autoencoder.decode(latents)[places, 0].float().cpu().numpy()
        return [self._write(sample, volume) for sample, volume in zip(samples, volumes, strict=True)]

    def _write(self, sample: Sample, volume: np.ndarray) -> dict[str, Any]:
        row = {
            "sample_id": sample.sample_id,
            "class": sample.class_name,
            "index": sample.index,
            "attempt": sample.attempt,
            "seed": sample.seed,
            "file": sample.image_file,
            "batch_size": self.config.batch_size,
            "threads": torch.get_num_threads(),
            "dtype": self.model.precision,
        }
        if not np.isfinite(volume).all():
            return {**row, "error": "the volume is not finite"}
        checks = volume_checks(volume, self.model.geometry["spacing_mm"])
        image = storage.join(self.config.output, sample.image_file)
        sha256 = storage.write_bytes(image, nifti.encode(volume, self.model.affine))
        storage.write_bytes(image.removesuffix(".nii.gz") + ".json", bids.json_bytes(self._sidecar(sample)))
        return {**row, "sha256": sha256, "checks": checks}

    def _sidecar(self, sample: Sample) -> dict[str, Any]:
        return {
            "Description": f"Synthetic T1-weighted volume of class {sample.class_name}; not an image of a person",
            "SkullStripped": True,
            "Synthetic": True,
            "Sources": [],
            "Class": sample.class_name,
            "Seed": sample.seed,
            "Sampler": dataclasses.asdict(self.config.sampler),
            "ModelFingerprint": self.model.fingerprint,
            "AutoencoderFingerprint": self.autoencoder.fingerprint,
            "SoftwareVersion": f"voxfleet {__version__}",
        }


_README = """# Synthetic brain volumes

These volumes were drawn from a generative model by Voxfleet. THEY ARE NOT IMAGES OF PEOPLE: no subject in this dataset
exists, and nothing in it may be used for a diagnosis.

- `participants.tsv` gives the class that each volume was asked for.
- `manifest.parquet` gives the seed, file, sha256 and checks of each volume.
- Intensities are scaled to [0, 1]; the grid is that of the model's training volumes (mm, RAS).
"""


def _write_dataset(config: GenerateConfig, model: dict[str, Any], autoencoder: str, rows: Rows) -> None:
    """The files about the whole dataset; the manifest last, which marks it as complete."""
    participants = [{"participant_id": row["file"].split("/")[0], "group": row["class"]} for row in rows]
    classes = {name: f"asked for as class {name}" for name in model["classes"]}
    files = {
        "README.md": _README.encode(),
        ".bidsignore": f"{MANIFEST}\n".encode(),
        "participants.tsv": bids.participants_tsv(participants),
        "participants.json": bids.json_bytes({"group": {"Description": "class of the sample", "Levels": classes}}),
        "dataset_description.json": bids.dataset_description(
            "Synthetic brain volumes",
            "derivative",
            description=f"samples of model {model['fingerprint']}, decoded by autoencoder {autoencoder}",
            source_datasets=[{"URL": f"urn:sha256:{model['fingerprint']}"}],
        ),
        MANIFEST: table_bytes(pa.Table.from_pylist(rows)),
    }
    for path, data in files.items():
        storage.write_bytes(storage.join(config.output, path), data)
