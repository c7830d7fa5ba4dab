"""Shards: Parquet files of fixed-shape tensors, and the manifest that describes a folder of them.

A row holds ``subject_id``, ``label`` (int), ``split``, ``source`` and one or more tensor columns (``volume``, or ``mu``
and ``logvar``). A row of latents says too whether it is ``mirrored``. A subject may have several rows, each with a
source of its own, which only a mirror image shares with its original. The manifest is written last: a folder without
one is unfinished.
"""

import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxfleet import storage
from voxfleet.documents import check_document, check_geometry, check_suffix
from voxfleet.errors import UserError

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
ROW_GROUP_BYTES = 512 << 10
DAMAGE = (pa.ArrowException, UnicodeDecodeError)  # what a damaged file raises in pyarrow


def shard_name(index: int) -> str:
    """File name of shard ``index``."""
    return f"part-{index:05d}.parquet"


def tensor_table(columns: dict[str, list[Any]], tensors: dict[str, np.ndarray]) -> pa.Table:
    """A table of plain ``columns`` and of ``tensors``, each (rows, *shape), as fixed-shape tensor columns."""
    arrays = {name: pa.array(values) for name, values in columns.items()}
    for name, values in tensors.items():
        arrays[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
    return pa.table(arrays)


def table_bytes(table: pa.Table) -> bytes:
    """``table`` as a Parquet file, in row groups small enough that a stream can mix rows of many of them.

    Numbers of tensors hardly repeat: a dictionary of them makes files larger and reading several times slower.
    """
    sink = io.BytesIO()
    tensor_columns = {field.name for field in table.schema if isinstance(field.type, pa.FixedShapeTensorType)}
    plain = [name for name in table.column_names if name not in tensor_columns]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=max(1, ROW_GROUP_BYTES * table.num_rows // max(table.nbytes, 1)),
        use_dictionary=plain,
        write_statistics=plain,
        use_byte_stream_split=[f"{name}.list.element" for name in tensor_columns],
    )
    return sink.getvalue()


def read_shard(uri: str, columns: list[str] | None = None) -> pa.Table:
    """The table of the Parquet file at ``uri``, or these ``columns`` of it.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=columns)
        table.validate(full=True)
        return table
    except (*DAMAGE, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{uri} is damaged ({reason}); delete its folder and make it again") from error


def tensors(table: pa.Table, name: str) -> np.ndarray:
    """Tensor column ``name`` of ``table`` as an array (rows, *shape).

    Raises:
        UserError: if it has no such column.
    """
    if name not in table.column_names or not isinstance(table[name].type, pa.FixedShapeTensorType):
        raise UserError(f"a shard has no tensors {name}, but {', '.join(table.column_names)}; make its folder again")
    return table[name].combine_chunks().to_numpy_ndarray()


class Shard(TypedDict):
    """What a manifest says of a shard."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        kind: "volumes" or "latents".
        shape: of one tensor.
        classes: class names; their order gives the label ints.
        counts: rows of each split and class, mirrored ones too, ``{"train": {"HC": 19, "TLE": 19}, ...}``.
        mean, std: of each channel over the training split (of draws mu + sigma * eps for latents).
        geometry: ``affine`` (4 x 4, voxel to RAS mm), ``spacing_mm``, ``orientation``, and ``mirror_axis``, the axis
            along which a mirrored volume (not its latent) is one of the same class, else null. Empty for latents that
            were imported without their autoencoder.
        limits: smallest and largest value of each check over the training volumes; empty for imported latents.
        autoencoder: fingerprint of the autoencoder that made the latents, else null: they cannot be decoded.
        shards: file, rows and sha256 of each shard.
        skipped: images left out: subject and reason.
        duplicates: images of two subjects that the audit found to be one: kind, subjects, splits, sources, correlation.
        suffix: BIDS suffix of the images, such as T1w, which the names of generated and decoded volumes end with.
        notes: what prepare found in the source or mended, by kind, with the subjects or images concerned.
    """

    kind: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    mean: list[float]
    std: list[float]
    geometry: dict[str, Any]
    limits: dict[str, list[float]]
    shards: list[dict[str, Any]]
    autoencoder: str | None = None
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    duplicates: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    suffix: str = "T1w"
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 of the manifest, which names the sha256 of every shard."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def files(self, folder: str) -> list[str]:
        """URIs of the shards of this manifest, which stands in ``folder``."""
        return [storage.join(folder, shard["file"]) for shard in self.shards]


def count_rows(rows: Iterable[dict[str, Any]], classes: tuple[str, ...], folder: str) -> dict[str, dict[str, int]]:
    """Rows of each split and class.

    Raises:
        UserError: if a class has no row in a split.
    """
    seen = Counter((row["split"], row["label"]) for row in rows)
    counts = {split: {name: seen[split, label] for label, name in enumerate(classes)} for split in SPLITS}
    for split, by_class in counts.items():
        for name, count in by_class.items():
            if not count:
                raise UserError(f"{folder}: class {name} has no usable subject in split {split}; add subjects to it")
    return counts


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write the manifest, which marks the folder as complete."""
    storage.write_json(
        storage.join(folder, MANIFEST), {"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    )


def read_manifest(folder: str, kind: str) -> Manifest:
    """The manifest of a folder of ``kind`` ("volumes" or "latents").

    Raises:
        UserError: if there is none, or it is of another kind or version, or lacks a key.
    """
    uri = storage.join(folder, MANIFEST)
    if not storage.exists(uri):
        raise UserError(
            f"{folder} holds no finished {kind} (no {MANIFEST}); check the path or run the job that makes it"
        )
    document = storage.read_json(uri)
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise UserError(f"{uri} does not describe {kind}; give the folder of {kind}")
    if document.pop("format_version", None) != FORMAT_VERSION:
        raise UserError(f"{uri} has another format version than {FORMAT_VERSION}; make the shards again")
    kinds, remedy = {**get_type_hints(Manifest), "shards": list[Shard]}, "make the shards again"
    if unknown := sorted(set(document) - set(kinds)):
        raise UserError(f"{uri} has a key that is not known, {unknown[0]!r}; {remedy}")
    check_document(document, kinds, uri, remedy)
    check_geometry(document["geometry"], uri, remedy, may_lack=kind == "latents")
    check_suffix(document["suffix"], uri, remedy)
    classes, shape, mean, std = (document[key] for key in ("classes", "shape", "mean", "std"))
    fitting = len(set(classes)) == len(classes) > 0 and min(shape, default=0) > 0 and len(mean) == len(std) > 0
    if kind == "latents":
        fitting = fitting and len(mean) == shape[0]
    if not fitting or any(len(ends) != 2 for ends in document["limits"].values()):
        raise UserError(f"{uri}: its classes, shape, mean, std and limits do not fit together; {remedy}")
    return Manifest(**{**document, "shape": tuple(document["shape"]), "classes": tuple(document["classes"])})
