"""Where each row of a split stands in its shards, and how rows are read."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxfleet import storage
from voxfleet.data.shards import DAMAGE, SPLITS, Manifest, tensors
from voxfleet.errors import UserError

_THREADS = 16
_SMALL = ("split", "label", "subject_id")
Arrays = dict[str, np.ndarray]
File = tuple[str, str]  # URI and sha256


@dataclass(frozen=True)
class Index:
    """The rows of one split, in the order of the shards.

    Attributes:
        files: URIs of the shards, and their hashes.
        labels, subjects: class and subject of each row, (rows,).
        groups: row group of each row, numbered over all shards, (rows,).
        offsets: place of each row in its row group, (rows,).
        group_files, group_numbers: of each row group, the shard and its number in that shard.
        columns: shape and dtype of a row of each tensor column.
    """

    files: tuple[File, ...]
    labels: np.ndarray
    subjects: np.ndarray
    groups: np.ndarray
    offsets: np.ndarray
    group_files: np.ndarray
    group_numbers: np.ndarray
    columns: dict[str, tuple[tuple[int, ...], str]]

    def __len__(self) -> int:
        return len(self.labels)

    def row_bytes(self, columns: Sequence[str]) -> int:
        """Bytes of one row of ``columns`` in memory."""
        return sum(
            math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in (self.columns[name] for name in columns)
        )

    def read(self, rows: np.ndarray, columns: Sequence[str]) -> Arrays:
        """``columns`` and ``label`` of ``rows``, in their order, each (rows, *shape); whole row groups are read.

        Raises:
            UserError: if a shard cannot be read.
        """
        arrays: Arrays = {"label": self.labels[rows]}
        for name in columns:
            shape, dtype = self.columns[name]
            arrays[name] = np.empty((len(rows), *shape), dtype)
        of_file = self.group_files[self.groups[rows]]
        for file in np.unique(of_file):  # one after another: groups hold more than what is asked for
            places = np.flatnonzero(of_file == file)
            needed, of_row = np.unique(self.groups[rows[places]], return_inverse=True)
            part, lengths = _read_groups(self.files[file], tuple(columns), self.group_numbers[needed].tolist())
            take = np.cumsum([0, *lengths[:-1]])[of_row] + self.offsets[rows[places]]
            for name in columns:
                arrays[name][places] = part[name][take]
        return arrays


def read_index(folder: str, manifest: Manifest, columns: Sequence[str]) -> dict[str, Index]:
    """The index of each split that has rows: from the footers and the small columns of all shards.

    Raises:
        UserError: if a shard is missing or damaged, lacks one of ``columns``, or is not what the manifest says.
    """
    if not manifest.shards:
        raise UserError(f"{folder}: the manifest lists no shards; make them again")
    files = tuple(zip(manifest.files(folder), (shard["sha256"] for shard in manifest.shards), strict=True))
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = [shard["rows"] for shard in manifest.shards]
        shards = list(pool.map(functools.partial(_read_small, manifest, columns), files, sizes))
    small = pa.concat_tables(table for table, _ in shards)
    split, labels, subjects = (np.array(small[name].to_pylist()) for name in _SMALL)
    lengths = np.concatenate([lengths for _, lengths in shards])
    groups = np.repeat(np.arange(len(lengths)), lengths)
    offsets = np.arange(len(labels)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    group_files = np.repeat(np.arange(len(files)), [len(lengths) for _, lengths in shards])
    group_numbers = np.concatenate([np.arange(len(lengths)) for _, lengths in shards])
    kinds = _tensor_columns(_footer(*files[0]).schema.to_arrow_schema())
    found = {}
    for name in SPLITS:
        if len(rows := np.flatnonzero(split == name)):
            of_rows = labels[rows], subjects[rows], groups[rows], offsets[rows]
            found[name] = Index(files, *of_rows, group_files, group_numbers, kinds)
    return found


def _read_small(manifest: Manifest, columns: Sequence[str], file: File, rows: int) -> tuple[pa.Table, list[int]]:
    """Subjects, labels and splits of a shard, and the lengths of its row groups."""
    uri, _ = file
    with _damage(uri):
        footer = _footer(*file)
        kinds = _tensor_columns(footer.schema.to_arrow_schema())
        if lacking := sorted({*columns, *_SMALL} - {*kinds, *footer.schema.to_arrow_schema().names}):
            raise UserError(f"{uri} has no column {lacking[0]}; make it again")
        for name, (shape, _) in kinds.items():
            if shape != manifest.shape:
                raise UserError(f"{uri}: {name} has shape {shape}, the manifest says {manifest.shape}; make it again")
        if footer.num_rows != rows:
            raise UserError(f"{uri} has {footer.num_rows} rows, the manifest says {rows}; make it again")
        table = _read(file, lambda parquet: parquet.read(columns=list(_SMALL)), rows)
        _check_small(uri, table, len(manifest.classes))
    return table, [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def _check_small(uri: str, table: pa.Table, classes: int) -> None:
    table.validate(full=True)
    for name in _SMALL:
        wanted = pa.types.is_integer if name == "label" else pa.types.is_string
        if not wanted(table[name].type) or table[name].null_count:
            raise UserError(f"{uri}: column {name} holds something else than a {name} in each row; make it again")
    label = pc.min_max(table["label"]).as_py()
    if table.num_rows and not 0 <= label["min"] <= label["max"] < classes:
        raise UserError(f"{uri} has labels {label['min']} to {label['max']} of {classes} classes; make it again")


def _tensor_columns(schema: pa.Schema) -> dict[str, tuple[tuple[int, ...], str]]:
    kinds = {field.name: field.type for field in schema if isinstance(field.type, pa.FixedShapeTensorType)}
    return {name: (tuple(kind.shape), str(kind.value_type.to_pandas_dtype().__name__)) for name, kind in kinds.items()}


def _read_groups(file: File, columns: tuple[str, ...], numbers: list[int]) -> tuple[Arrays, list[int]]:
    """``columns`` of some row groups of a shard, and the lengths of these groups."""
    with _damage(file[0]):
        lengths = [_footer(*file).row_group(number).num_rows for number in numbers]
        names = list(columns)
        table = _read(file, lambda parquet: parquet.read_row_groups(numbers, names, use_threads=False), sum(lengths))
    return {name: tensors(table, name) for name in columns}, lengths


def _read(file: File, action: Callable[[pq.ParquetFile], pa.Table], rows: int) -> pa.Table:
    uri, _ = file
    remote = not storage.is_local(uri)
    table = storage.retried(
        uri,
        lambda system, path: action(
            pq.ParquetFile(path, filesystem=system, metadata=_footer(*file), pre_buffer=remote)
        ),
    )
    table.validate()
    if table.num_rows != rows:
        raise UserError(f"{uri} is damaged ({table.num_rows} rows of {rows}); delete its folder and make it again")
    return table


@functools.lru_cache(maxsize=4096)
def _footer(uri: str, sha256: str) -> pq.FileMetaData:
    """Kept, since each task reads a few groups of many files; a file that was made again has another hash."""
    return storage.retried(uri, lambda system, path: pq.read_metadata(path, filesystem=system))


@contextlib.contextmanager
def _damage(uri: str) -> Iterator[None]:
    try:
        yield
    except (*DAMAGE, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{uri} is missing or damaged ({reason}); delete its folder and make it again") from error


def check_trainable(folder: str, manifest: Manifest, splits: Mapping[str, Index]) -> None:
    """Make sure that there are samples of every class to train on, and some to validate on.

    Raises:
        UserError: says what is missing.
    """
    for name in ("train", "val"):
        if name not in splits:
            raise UserError(f"{folder} has no sample in split {name}; make it again with another split")
    there = set(splits["train"].labels.tolist())
    for label, name in enumerate(manifest.classes):
        if label not in there:
            raise UserError(f"{folder} has no sample of class {name} in split train; add some, or train without it")
