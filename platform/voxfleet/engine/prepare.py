"""The prepare job: a cohort of NIfTI images to volume shards, one Ray task a shard."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray

from voxfleet import storage
from voxfleet.config.jobs import PrepareConfig
from voxfleet.data import nifti, skullstrip
from voxfleet.data.audit import audit_columns, check_duplicates, find_duplicates
from voxfleet.data.preprocess import PreprocessConfig, Volume, common_affine, preprocess
from voxfleet.data.quality import limits, volume_checks
from voxfleet.data.shards import (
    MANIFEST,
    Manifest,
    count_rows,
    shard_name,
    table_bytes,
    tensor_table,
    write_manifest,
)
from voxfleet.data.sources import Scan, list_scans, split_subjects
from voxfleet.engine.console import Progress, say
from voxfleet.engine.job import job_session
from voxfleet.engine.output import LEDGER, Output, digest
from voxfleet.engine.units import Ledger, Rows, run_units
from voxfleet.errors import UserError

_LOG_EVERY_S = 30.0


def run(config: PrepareConfig) -> None:
    """Make the volume shards."""
    listing = list_scans(config.source)
    scans = listing.scans
    splits = split_subjects(scans, config.split, config.source.classes)
    listed = digest([dataclasses.astuple(scan) for scan in scans])
    output = Output("prepare", config.output, config, inputs={"source": listed})
    if output.is_done(MANIFEST):
        return
    _check_skull_strip(config, scans)
    _say_notes(listing.notes)
    folder = storage.absolute(config.output)
    with job_session(output) as tracker:
        progress = Progress("prepare", len(scans), "images")
        with _count_stripped(config, len(scans)) as counter:
            rows = run_units(
                _shards(scans, splits, config.subjects_per_shard),
                functools.partial(_make_shard, config, folder, counter),
                Ledger(storage.join(folder, LEDGER)),
                progress,
                weight=len,
            )
        manifest = _manifest(config, [row for unit in rows.values() for row in unit], listing.notes)
        write_manifest(folder, manifest)
        tracker.log_metrics([{f"{s}_{c}": n for s, counts in manifest.counts.items() for c, n in counts.items()}])
        counts = "; ".join(
            f"{split} " + " ".join(f"{name} {n}" for name, n in by_class.items())
            for split, by_class in manifest.counts.items()
        )
        progress.finish(f"volumes {manifest.shape} ({counts}) in {config.output}")


def _check_skull_strip(config: PrepareConfig, scans: list[Scan]) -> None:
    """Fail before any work where brains cannot be cut out."""
    if config.preprocess.skull_strip == "deepbet":
        skullstrip.check_deepbet()
    if config.preprocess.skull_strip == "masks" and not any(scan.mask for scan in scans):
        raise UserError(f"{config.source.table} names no masks; add a column mask, or use another skull_strip")


@ray.remote(num_cpus=0)
class _Counter:
    """Counts images of shards that are not finished."""

    def __init__(self) -> None:
        self._images = 0

    def add(self) -> None:
        self._images += 1

    def count(self) -> int:
        return self._images


@contextlib.contextmanager
def _count_stripped(config: PrepareConfig, total: int) -> Iterator[Any]:
    """Yield a counter of images, and log what it counts, where a shard takes minutes (deepbet); else None."""
    if config.preprocess.skull_strip != "deepbet":
        yield None
        return
    counter, is_over = _Counter.remote(), threading.Event()  # type: ignore[attr-defined]

    def log() -> None:
        while not is_over.wait(_LOG_EVERY_S):
            with contextlib.suppress(ray.exceptions.RayError):  # without its node, nothing is counted
                images = ray.get(counter.count.remote(), timeout=_LOG_EVERY_S)
                say(f"prepare: deepbet has stripped {images} images in this run, of {total} in all")

    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        is_over.set()
        thread.join()


def _shards(scans: list[Scan], splits: dict[str, str], size: int) -> dict[str, list[dict[str, Any]]]:
    rows = [
        {
            "subject_id": scan.subject_id,
            "label": scan.label,
            "split": splits[scan.subject_id],
            "source": scan.path,
            "mask": scan.mask,
        }
        for scan in scans
    ]
    return {shard_name(i): rows[start : start + size] for i, start in enumerate(range(0, len(rows), size))}


def _make_shard(config: PrepareConfig, folder: str, counter: Any, name: str, scans: list[dict[str, Any]]) -> Rows:
    """Preprocess the images of one shard and write it; one that cannot be used becomes a row with an ``error``.

    Each image is added to ``counter``, if there is one.
    """
    done: list[tuple[dict[str, Any], Volume]] = []
    failed: Rows = []
    for scan in scans:
        try:
            done.append((scan, _volume(scan, config)))
        except UserError as error:
            failed.append({"subject_id": scan["subject_id"], "error": str(error)})
        if counter:
            counter.add.remote()
    if not done:
        return failed
    columns: dict[str, list[Any]] = {
        key: [scan[key] for scan, _ in done] for key in ("subject_id", "label", "split", "source")
    }
    columns["affine"] = [volume.affine.flatten().tolist() for _, volume in done]
    table = tensor_table(columns, {"volume": np.stack([volume.data for _, volume in done])})
    sha256 = storage.write_bytes(storage.join(folder, name), table_bytes(table))
    return failed + [_row(scan, volume, config.preprocess, name, sha256) for scan, volume in done]


def _volume(scan: dict[str, Any], config: PrepareConfig) -> Volume:
    image = nifti.read(scan["source"])
    mask = nifti.read(scan["mask"]) if config.preprocess.skull_strip == "masks" and scan["mask"] else None
    try:
        return preprocess(image, config.preprocess, mask, config.source.orientation)
    except UserError as error:
        raise UserError(f"{scan['source']}: {error}") from error


def _row(scan: dict[str, Any], volume: Volume, config: PreprocessConfig, name: str, sha256: str) -> dict[str, Any]:
    return {
        **{key: scan[key] for key in ("subject_id", "label", "split", "source")},
        **audit_columns(volume.data),
        "file": name,
        "sha256": sha256,
        "affine": volume.affine.flatten().tolist(),
        "mean": float(volume.data.mean(dtype=np.float64)),
        "square": float(np.square(volume.data, dtype=np.float64).mean()),
        "checks": volume_checks(volume.data, config.spacing_mm),
        "notes": list(volume.notes),
    }


def _manifest(config: PrepareConfig, rows: Rows, source_notes: dict[str, list[str]]) -> Manifest:
    failed = [row for row in rows if row.get("error")]
    good = [row for row in rows if not row.get("error")]
    if len(failed) > config.max_skipped * len(rows):
        raise UserError(
            f"{len(failed)} of {len(rows)} images cannot be used, max_skipped ({config.max_skipped:g}) allows fewer; "
            f"mend or replace them, the first: {failed[0]['error']}"
        )
    if failed:
        first = f"{failed[0]['subject_id']}: {failed[0]['error']}"
        say(f"prepare: images left out: {len(failed)}, the first: {first} (the manifest lists them)", level="warning")
    image_notes = _image_notes(good)
    _say_notes(image_notes)
    counts = count_rows(good, config.source.classes, config.output)
    duplicates = find_duplicates(good, config.audit)
    if line := check_duplicates(duplicates, config.audit, config.output):
        say(f"prepare: {line}", level="warning")
    train = [row for row in good if row["split"] == "train"]
    mean = float(np.mean([row["mean"] for row in train]))
    variance = float(np.mean([row["square"] for row in train])) - mean**2
    affine = common_affine(config.preprocess, [np.reshape(row["affine"], (4, 4)) for row in train])
    files = {row["file"]: row["sha256"] for row in good}
    sizes = [row["file"] for row in good]
    return Manifest(
        kind="volumes",
        shape=config.preprocess.shape,
        classes=config.source.classes,
        counts=counts,
        mean=[mean],
        std=[variance**0.5],
        geometry={
            "affine": affine.tolist(),
            "spacing_mm": list(config.preprocess.spacing_mm),
            "orientation": "RAS",
            "mirror_axis": 0 if config.source.mirrored else None,  # the first axis points right
        },
        limits=limits([row["checks"] for row in train]),
        shards=[{"file": name, "rows": sizes.count(name), "sha256": files[name]} for name in sorted(files)],
        skipped=[{"subject_id": row["subject_id"], "reason": row["error"]} for row in failed],
        duplicates=[dataclasses.asdict(duplicate) for duplicate in duplicates],
        suffix=config.source.suffix,
        notes={**source_notes, **image_notes},
    )


def _say_notes(notes: dict[str, list[str]]) -> None:
    for kind, entries in notes.items():
        say(f"prepare: {kind}: {len(entries)}, the first: {entries[0]} (the manifest lists them)", level="warning")


def _image_notes(rows: Rows) -> dict[str, list[str]]:
    """The images that needed each kind of repair."""
    kinds = sorted({kind for row in rows for kind in row["notes"]})
    return {kind: [row["source"] for row in rows if kind in row["notes"]] for kind in kinds}
