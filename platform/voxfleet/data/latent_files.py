"""Latents that were made elsewhere: the table that lists them, and one file of each sample.

Letters: C channels, d/h/w voxels of a latent.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from voxfleet import storage
from voxfleet.data import nifti
from voxfleet.data.shards import SPLITS, count_rows
from voxfleet.data.sources import Scan, SplitConfig, read_table, split_subjects
from voxfleet.errors import UserError
from voxfleet.foreign import read_foreign
from voxfleet.models.vae import LOGVAR
from voxfleet.models.vae_weights import to_float32

_NAMES = ("mu", "logvar", "sigma")
_LISTING_THREADS = 16


@dataclass(frozen=True)
class LatentFile:
    """A line of the table."""

    subject_id: str
    label: int
    split: str
    source: str


def list_latents(table: str, folder: str, classes: tuple[str, ...], split: SplitConfig) -> list[LatentFile]:
    """The latents that ``table`` lists, sorted by subject and file, with the split of each.

    Args:
        table: CSV or TSV with the columns subject_id, label, file (or path) and, if wanted, split.
        folder: where relative files start.
        classes: names of the labels 0, 1, ...
        split: the split by subject, where the table has none.

    Raises:
        UserError: names the line that cannot be used, the class that a split lacks, or the file that is not there.
    """
    table = storage.absolute(table)
    records = read_table(table, ("subject_id", "label"), "add it")
    if not records:
        raise UserError(f"{table} lists no latent; add a line for each")
    column = _file_column(table, records[0][1])
    rows = [_row(f"{table} line {line}", record, column, folder, classes) for line, record in records]
    _check_rows(table, [line for line, _ in records], rows)
    if "split" not in records[0][1]:
        scans = [Scan(row.subject_id, row.label, row.source) for row in rows]
        splits = split_subjects(scans, split, classes)
        rows = [LatentFile(row.subject_id, row.label, splits[row.subject_id], row.source) for row in rows]
    count_rows(({"split": row.split, "label": row.label} for row in rows), classes, table)
    _check_files(table, [row.source for row in rows])
    return sorted(rows, key=lambda row: (row.subject_id, row.source))


def _file_column(table: str, record: Mapping[str, str]) -> str:
    """The name of the column of files, in a table of no other columns than are known."""
    if len({"file", "path"} & record.keys()) != 1:
        raise UserError(
            f"{table} must have one column file (or path) that names each latent's file; it has {', '.join(record)}"
        )
    for name in record:
        if name not in ("subject_id", "label", "split", "file", "path"):
            raise UserError(f"{table} has the unknown column {name!r}; keep subject_id, label, split and file alone")
    return "file" if "file" in record else "path"


def _row(where: str, record: Mapping[str, str], column: str, folder: str, classes: tuple[str, ...]) -> LatentFile:
    for name in ("subject_id", column):
        if not record[name]:
            raise UserError(f"{where}: column {name} is empty; fill it in or remove the line")
    if record["label"] not in classes:
        known = ", ".join(classes)
        raise UserError(f"{where}: label {record['label']!r} is not one of classes ({known}); correct it or classes")
    split = record.get("split")
    if split is not None and split not in SPLITS:
        raise UserError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}; correct it")
    source = storage.absolute(record[column], folder)
    return LatentFile(record["subject_id"], classes.index(record["label"]), split or "", source)


def _check_rows(table: str, lines: list[int], rows: list[LatentFile]) -> None:
    """Make sure that every file stands once, and that each subject has one label and one split."""
    files: dict[str, int] = {}
    subjects: dict[str, int] = {}
    for index, row in enumerate(rows):
        if (other := files.setdefault(row.source, index)) != index:
            raise UserError(f"{table} lines {lines[other]} and {lines[index]} name one file, {row.source}; remove one")
        other = subjects.setdefault(row.subject_id, index)
        where = f"{table} lines {lines[other]} and {lines[index]}: subject {row.subject_id}"
        if rows[other].label != row.label:
            raise UserError(f"{where} has two labels; give it one")
        if rows[other].split != row.split:
            raise UserError(f"{where} is in the splits {rows[other].split} and {row.split}; a subject belongs to one")


def _check_files(table: str, uris: list[str]) -> None:
    """Make sure that every file is there: by one listing of each folder, which object stores answer fast."""
    folders = sorted({uri.rpartition("/")[0] for uri in uris})
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        listings = pool.map(storage.names, folders)
        there = {f"{folder}/{name}" for folder, names in zip(folders, listings, strict=True) for name in names}
    missing = [uri for uri in uris if uri not in there]
    if missing:
        raise UserError(
            f"{table} names {len(missing)} files that do not exist, the first: {missing[0]}; check it and latents"
        )


def read_latent(uri: str) -> tuple[np.ndarray, np.ndarray | None]:
    """mu and, where the file has it, logvar of one sample, each (C, d, h, w) float32.

    The file holds one array, which is mu, or arrays named mu and, if wanted, logvar or sigma. A leading batch axis of 1
    is dropped. A NIfTI image, such as MAISI's ``*_emb.nii.gz``, is mu with the channels last. logvar is kept within the
    bounds of MONAI's own, -30 and 20.

    Raises:
        UserError: names the file, and what in it cannot be used.
    """
    is_nifti = uri.lower().endswith((".nii", ".nii.gz"))
    named = {"mu": _read_nifti(uri)} if is_nifti else _by_name(uri, read_foreign(uri))
    arrays = {name: _array(f"{uri}: {name}", value) for name, value in named.items()}
    for name, array in arrays.items():
        if array.shape != arrays["mu"].shape:
            raise UserError(f"{uri}: {name} has shape {array.shape}, mu has {arrays['mu'].shape}; save them alike")
    if "sigma" in arrays:
        if arrays["sigma"].min() < 0:
            raise UserError(f"{uri}: sigma is negative; save the standard deviation, or a logarithm as logvar")
        with np.errstate(divide="ignore"):
            arrays["logvar"] = 2 * np.log(arrays["sigma"])
    return arrays["mu"], np.clip(arrays["logvar"], *LOGVAR) if "logvar" in arrays else None


def _read_nifti(uri: str) -> np.ndarray:
    """(C, d, h, w) of an image whose last axis are the channels."""
    image = nifti.read(uri)
    if len(image.shape) != 4:
        raise UserError(f"{uri} has shape {image.shape}; a latent in NIfTI has four axes, the channels last")
    return np.moveaxis(np.asanyarray(image.dataobj), -1, 0)


def _by_name(uri: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {"mu": content}
    if len(content) == 1 and not content.keys() & {"logvar", "sigma"}:
        return {"mu": next(iter(content.values()))}
    unknown = [str(key) for key in content if key not in _NAMES]
    if unknown or "mu" not in content or len(content) == len(_NAMES):
        held = ", ".join(map(str, content)) or "nothing"
        raise UserError(f"{uri} holds {held}; it must hold mu, and if wanted either logvar or sigma, under these names")
    return dict(content)


def _array(where: str, value: Any) -> np.ndarray:
    """A finite (C, d, h, w) float32 array."""
    if isinstance(value, torch.Tensor):
        try:
            value = to_float32(value).numpy()
        except ValueError as error:
            raise UserError(f"{where} {error}") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":  # integers are codes of a quantisation or of VQ
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{where} is of type {kind}; save an array of real floating-point numbers")
    if value.ndim == 5 and len(value) == 1:
        value = value[0]
    if value.ndim != 4 or not value.size:
        raise UserError(f"{where} has shape {value.shape}; a latent has four axes (channels and three of space)")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"{where} holds NaN or infinite values; make the latent again")
    return value
