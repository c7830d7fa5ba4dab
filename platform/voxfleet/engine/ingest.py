"""How shards reach the workers: read once and kept, or streamed by Ray Data in the order of a plan.

Both give the same batches: the plan alone decides them.
"""

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data

from voxfleet.data.index import Arrays, Index
from voxfleet.data.plan import UNIT_BYTES
from voxfleet.engine.cluster import quiet_data, ray_errors

_KEPT_SHARE = 0.4  # of the smallest node's object store: what is kept has to fit beside everything else
_KEPT_TASKS = 8  # that read at once
_STREAM_STORE_BYTES = 256 << 20  # of the object store, for one worker's stream
_STREAM_TASKS = 1  # of one worker's stream at a time


@dataclass(frozen=True)
class Split:
    """One split, as it is sent to the workers.

    Attributes:
        index: of its ``Index``.
        columns: the tensors that are read.
        rows, size: how many rows there are, and their bytes in memory.
        kept: the tensors themselves, where they are held in Ray's object store; on one node all workers share them.
    """

    index: ray.ObjectRef
    columns: tuple[str, ...]
    rows: int
    size: int
    kept: dict[str, ray.ObjectRef] | None

    def open(self) -> "Reader":
        """A reader in this process."""
        arrays = self.kept and {name: ray.get(ref) for name, ref in self.kept.items()}
        return Reader(self.index, ray.get(self.index), self.columns, arrays)


@dataclass(frozen=True)
class Reader:
    """Reads the rows of a split. All arrays are (rows, *shape); ``label`` (rows,) comes with each read."""

    ref: ray.ObjectRef
    index: Index
    columns: tuple[str, ...]
    arrays: Arrays | None

    def read(self, rows: np.ndarray) -> Arrays:
        """These rows, here and now."""
        if self.arrays is None:
            return self.index.read(rows, self.columns)
        return {**{name: self.arrays[name][rows] for name in self.columns}, "label": self.index.labels[rows]}

    def blank(self) -> Arrays:
        """One row of zeros: what a worker without a row computes with."""
        tensors = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in self._kinds()}
        return {**tensors, "label": np.zeros(1, np.int64)}

    def _kinds(self) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
        return ((name, self.index.columns[name]) for name in self.columns)

    def batches(self, rows: np.ndarray, sizes: Sequence[int], units: Sequence[int]) -> Generator[Arrays]:
        """``rows`` in batches of ``sizes`` (above 0), in order; a streamed split is read in tasks of ``units`` rows.

        Close the iterator if it is left before its end: a stream goes on reading until then.
        """
        if self.arrays is not None:
            edges = np.cumsum([0, *sizes])
            yield from (self.read(rows[start:stop]) for start, stop in itertools.pairwise(edges))
            return
        with contextlib.closing(stream(self.ref, self.columns, rows, units)) as blocks:
            yield from rebatch(blocks, sizes)


def open_splits(found: Mapping[str, Index], columns: tuple[str, ...], mode: str) -> dict[str, Split]:
    """The splits of ``read_index``, ready for workers.

    ``mode`` is kept, streamed, or auto: kept where all of them fit into a part of the smallest node's object store.

    Raises:
        UserError: if a shard that is kept cannot be read.
    """
    size = sum(len(index) * index.row_bytes(columns) for index in found.values())
    keep = mode == "kept" or (mode == "auto" and size <= _KEPT_SHARE * _smallest_store())
    return {name: _open(index, columns, keep) for name, index in found.items()}


def describe(splits: dict[str, Split]) -> str:
    """How the splits are read, for the user."""
    rows, size = (sum(getattr(split, key) for split in splits.values()) for key in ("rows", "size"))
    kept = all(split.kept is not None for split in splits.values())
    return f"{rows} rows ({size / 1e6:.3g} MB) are {'read once and kept' if kept else 'streamed in each epoch'}"


def _smallest_store() -> float:
    return min(node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"])


def _open(index: Index, columns: tuple[str, ...], keep: bool) -> Split:
    ref = ray.put(index)
    kept = _read_once(ref, index, columns) if keep else None
    return Split(ref, columns, len(index), len(index) * index.row_bytes(columns), kept)


def _read_once(ref: ray.ObjectRef, index: Index, columns: tuple[str, ...]) -> dict[str, ray.ObjectRef]:
    size = max(1, UNIT_BYTES // index.row_bytes(columns))
    arrays = {name: np.empty((len(index), *index.columns[name][0]), index.columns[name][1]) for name in columns}
    waiting: deque[tuple[slice, ray.ObjectRef]] = deque()
    starts = range(0, len(index), size)
    for number, start in enumerate(starts, start=1):
        rows = slice(start, min(start + size, len(index)))
        waiting.append((rows, _read.remote(ref, np.arange(rows.start, rows.stop), columns)))
        while len(waiting) > (_KEPT_TASKS if number < len(starts) else 0):
            done, block = waiting.popleft()
            with ray_errors():
                found = ray.get(block)
            for name in columns:
                arrays[name][done] = found[name]
    return {name: ray.put(values) for name, values in arrays.items()}


@ray.remote
def _read(index: Index, rows: np.ndarray, columns: tuple[str, ...]) -> Arrays:
    return index.read(rows, columns)


def stream(index: ray.ObjectRef, columns: tuple[str, ...], rows: np.ndarray, units: Sequence[int]) -> Generator[Arrays]:
    """``rows`` in blocks of ``units`` rows, read by Ray Data, one task a block, in order.

    It runs one task at a time, on this node, so that data cross the network once, and in a part of the object store, so
    that several streams run side by side. The tasks reserve no CPU: workers that hold all of them would wait for ever.
    """
    if not units:
        return
    quiet_data()
    pieces = np.split(rows, np.cumsum(units)[:-1])
    dataset = ray.data.from_blocks([pa.table({"rows": [piece]}) for piece in pieces])
    dataset = dataset.map_batches(
        functools.partial(_read_unit, index=index, columns=columns),
        batch_size=None,
        batch_format="numpy",
        num_cpus=0,
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        fallback_strategy=[{"label_selector": {}}],  # a node that is about to be taken away gets no new task
        compute=ray.data.TaskPoolStrategy(_STREAM_TASKS),
    )
    options = dataset.context.execution_options
    options.preserve_order = True
    options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=_STREAM_STORE_BYTES)
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)


def _read_unit(unit: Arrays, *, index: ray.ObjectRef, columns: tuple[str, ...]) -> Arrays:
    return ray.get(index).read(np.concatenate(list(unit["rows"])), columns)


def rebatch(blocks: Iterator[Arrays], sizes: Sequence[int]) -> Iterator[Arrays]:
    """The rows of ``blocks``, in order, in batches of ``sizes`` (above 0), each a copy of its own."""
    block, start = next(blocks), 0
    for size in sizes:
        pieces = []
        while size:
            if start == len(block["label"]):
                block, start = next(blocks), 0
            stop = min(start + size, len(block["label"]))
            pieces.append({name: values[start:stop] for name, values in block.items()})
            size -= stop - start
            start = stop
        yield {name: np.concatenate([piece[name] for piece in pieces]) for name in block}
