"""The decode job: latent shards to volumes, in a pool of actors that hold the autoencoder."""

import functools
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from voxfleet import storage
from voxfleet.config.generation import DecodeConfig
from voxfleet.data import bids, nifti
from voxfleet.data.latents import COLUMNS, MIRRORED
from voxfleet.data.shards import Manifest, read_manifest, read_shard, table_bytes, tensors
from voxfleet.data.synthetic import MANIFEST, RELEASE, SCRATCH, sidecar_file
from voxfleet.engine.cluster import gpus_per_worker
from voxfleet.engine.console import Progress
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import LEDGER, Output
from voxfleet.engine.registered import located_packages, shared_packages
from voxfleet.engine.units import Ledger, Pool, Rows, run_units
from voxfleet.errors import UserError
from voxfleet.models.execution import padded
from voxfleet.packages import fitting_autoencoder, load_autoencoder

_README = """# Decoded brain volumes

Each volume is what an autoencoder makes of a latent: a reconstruction where the latent is of an image, a synthetic
volume where a model drew it. `manifest.parquet` names the source of each, its split and its sha256. `desc-mirrored`
shows the mirror image of a head: its left is the person's right. Intensities are scaled to [0, 1]. Not for diagnosis.
"""


def run(config: DecodeConfig) -> None:
    """Make the volumes."""
    with tempfile.TemporaryDirectory() as downloads:
        _run(config, downloads)


def _run(config: DecodeConfig, downloads: str) -> None:
    latents = read_manifest(config.data, "latents")
    located = located_packages(config, downloads)
    package = fitting_autoencoder(located.autoencoder, latents.autoencoder, config.data)
    output = Output("decode", config.output, config, {"data": latents.digest, "autoencoder": package["fingerprint"]})
    if output.is_done(MANIFEST):
        return
    names = _names(config.data, latents, config.compress)
    with job_session(output, workers=True) as tracker:
        there = absolute_paths(shared_packages(located, downloads, config.output), "output", "data", "autoencoder")
        gpus = gpus_per_worker(config.resources)
        progress = Progress("decode", sum(map(len, names.values())), "volumes")
        units = run_units(
            names,
            Decoding,
            Ledger(storage.join(there.output, LEDGER)),
            progress,
            pool=Pool(workers=config.resources.workers, cpus=config.resources.cpus_per_worker, gpus=gpus),
            arguments=(there, gpus > 0, latents.geometry["affine"]),
            weight=len,
        )
        rows = [{**row, "class": latents.classes[row["label"]]} for unit in units.values() for row in unit]
        storage.remove(storage.join(there.output, SCRATCH))
        _write_dataset(there, latents, rows)
        tracker.log_metrics([{"volumes": len(rows)}])
        progress.finish(f"{len(rows)} volumes in {config.output}")


def _names(folder: str, latents: Manifest, compress: bool) -> dict[str, list[str]]:
    """For each shard, the file of each of its rows; the rows of a subject that has several are numbered as runs.

    A mirror image has the run of its original.
    """
    rows = {
        shard["file"]: [
            (row["subject_id"], row[MIRRORED]) for row in read_shard(uri, ["subject_id", MIRRORED]).to_pylist()
        ]
        for shard, uri in zip(latents.shards, latents.files(folder), strict=True)
    }
    total, seen = Counter(row for every in rows.values() for row in every), Counter[tuple[str, bool]]()
    ids = bids_ids({subject for subject, _ in total})
    names: dict[str, list[str]] = {}
    for shard, every in rows.items():
        names[shard] = []
        for row in every:
            seen[row] += 1
            subject, mirrored = row
            run = f"_run-{seen[row]}" if total[row] > 1 else ""
            kind = "mirrored" if mirrored else "decoded"
            file = f"{ids[subject]}{run}_desc-{kind}_{latents.suffix}.nii{'.gz' if compress else ''}"
            names[shard].append(f"{ids[subject]}/anat/{file}")
    return names


def bids_ids(subjects: Iterable[str]) -> dict[str, str]:
    """The BIDS id, ``sub-`` with letters and digits, of each subject: imported ones have any.

    Raises:
        UserError: if two subjects would have the same.
    """
    ids: dict[str, str] = {}
    for subject in subjects:
        name = f"sub-{re.sub('[^A-Za-z0-9]', '', subject.removeprefix('sub-'))}"
        other = ids.setdefault(name, subject)
        if other != subject or name == "sub-":
            raise UserError(
                f"the latents' subjects {other!r} and {subject!r} have no BIDS ids of their own ({name}); import them "
                "with ids that differ in their letters and digits"
            )
    return {subject: name for name, subject in ids.items()}


class Decoding:
    """An actor that decodes whole shards."""

    def __init__(self, config: DecodeConfig, gpu: bool, affine: list[list[float]]) -> None:
        torch.set_num_threads(config.resources.cpus_per_worker)
        self.config, self.affine = config, np.array(affine)
        self.device = "cuda" if gpu else "cpu"
        self.autoencoder = load_autoencoder(config.autoencoder, self.device, precision=config.precision)

    def __call__(self, shard: str, names: list[str]) -> Rows:
        """Decode and write ``shard``, whose volumes get these names."""
        table = read_shard(storage.join(self.config.data, shard))
        latents, size = torch.from_numpy(tensors(table, "mu").astype(np.float32)), self.config.batch_size
        rows = table.select([*COLUMNS, MIRRORED]).to_pylist()
        for start in range(0, len(latents), size):
            part = latents[start : start + size].to(self.device)
            volumes = self.autoencoder.decode(padded(part, size))[:, 0].float().cpu().numpy()
            for row, name, volume in zip(rows[start:], names[start:], volumes, strict=False):
                row |= self._write(row, name, volume)
        return rows

    def _write(self, row: dict[str, Any], name: str, volume: np.ndarray) -> dict[str, str]:
        if not np.isfinite(volume).all():
            raise UserError(f"{self.config.autoencoder} makes a volume that is not finite of {row['source']}")
        image = storage.join(self.config.output, name)
        sidecar = {
            "Description": "Decoded from a latent; not an image as it was taken",
            "SkullStripped": True,
            "Sources": [],
            "AutoencoderFingerprint": self.autoencoder.fingerprint,
        }
        write = functools.partial(storage.write_bytes, scratch=storage.join(self.config.output, SCRATCH))
        write(sidecar_file(image), bids.json_bytes(sidecar))
        data = nifti.encode(volume, self.affine, dtype=self.config.dtype, compress=self.config.compress)
        return {"file": name, "sha256": write(image, data)}


def _write_dataset(config: DecodeConfig, latents: Manifest, rows: Rows) -> None:
    """The files about the dataset, the manifest last."""
    people = {row["file"].partition("/")[0]: row["class"] for row in rows}
    participants = [{"participant_id": subject, "group": group} for subject, group in people.items()]
    levels = {name: f"latents of class {name}" for name in latents.classes}
    files = {
        "README.md": _README.encode(),
        ".bidsignore": f"{MANIFEST}\n{RELEASE}\n".encode(),
        "participants.tsv": bids.participants_tsv(participants),
        "participants.json": bids.json_bytes({"group": {"Description": "class of the latent", "Levels": levels}}),
        "dataset_description.json": bids.dataset_description(
            "Decoded brain volumes",
            "derivative",
            description=f"latents decoded by autoencoder {latents.autoencoder}",
            source_datasets=[{"URL": f"urn:sha256:{latents.digest}"}],
        ),
        MANIFEST: table_bytes(pa.Table.from_pylist(rows)),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(config.output, name), data)
