"""Units of work with a ledger: each unit is done once, however often the job is killed and started again.

A unit's worker writes its data first and then its fragment, an immutable Parquet file of rows in the ledger folder.
What has a fragment is done.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from pyarrow import dataset, fs

from voxfleet import errors, storage
from voxfleet.data.shards import read_shard, table_bytes
from voxfleet.engine.console import Progress
from voxfleet.errors import UserError, VoxfleetError

Rows = list[dict[str, Any]]
_SUFFIX = ".parquet"
_READ_AT_ONCE = 1000  # fragments


@dataclass(frozen=True)
class Ledger:
    """The fragments in one folder."""

    folder: str

    def done(self) -> set[str]:
        """Names of the units that are committed."""
        return {name.removesuffix(_SUFFIX) for name in storage.names(self.folder) if name.endswith(_SUFFIX)}

    def commit(self, unit: str, rows: Rows, schema: pa.Schema | None = None) -> None:
        """Commit a unit whose data is written."""
        data = table_bytes(pa.Table.from_pylist(rows, schema=schema))
        storage.write_bytes(storage.join(self.folder, unit + _SUFFIX), data)

    def table(self, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """The rows of all units, which were committed with this ``schema``.

        Raises:
            UserError: if a fragment is damaged.
        """
        names = sorted(self.done())

        def read(system: fs.FileSystem, path: str) -> pa.Table:
            empty = schema.empty_table().select(columns or schema.names)
            parts = [empty]
            for start in range(0, len(names), _READ_AT_ONCE):  # their footers take more memory than their rows
                files = [f"{path}/{name}{_SUFFIX}" for name in names[start : start + _READ_AT_ONCE]]
                found = dataset.dataset(files, schema=schema, filesystem=system, format="parquet")
                parts.append(found.to_table(columns))
            return pa.concat_tables(parts)

        try:
            return storage.retried(self.folder, read)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.folder} is damaged ({reason}); remove the file that is named") from error

    def rows(self, unit: str) -> Rows:
        """The rows of a committed unit."""
        return read_shard(storage.join(self.folder, unit + _SUFFIX)).to_pylist()


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A full pool of actors, each of which loads its model once."""

    workers: int
    cpus: float
    gpus: float


def run_units(
    units: dict[str, Any],
    work: Callable[[str, Any], Rows] | type,
    ledger: Ledger,
    progress: Progress,
    *,
    pool: Pool | None = None,
    arguments: tuple[Any, ...] = (),
    weight: Callable[[Any], int] = lambda unit: 1,
) -> dict[str, Rows]:
    """Do the ``units`` (name to content) that the ledger lacks, on Ray Data; returns the rows of all units by name.

    ``work`` is a function ``work(name, content) -> rows``, run as tasks, or a class whose instances are such functions,
    made from ``arguments`` in a ``pool`` of actors. A row with an ``error`` is returned but its unit is not committed:
    it is tried again by the next run. ``weight`` is what a unit counts for in the progress.
    """
    done = ledger.done()
    rows = {name: ledger.rows(name) for name in units if name in done}
    missing = [{"unit": name, "content": content} for name, content in units.items() if name not in done]
    progress.skip(sum(weight(units[name]) for name in rows))
    if not missing:
        return rows
    items = ray.data.from_items(missing, override_num_blocks=len(missing))
    if pool is None:
        results = items.map(_Task(work, ledger), num_cpus=1)
    else:
        results = items.map(
            _Actor,
            fn_constructor_args=(work, arguments, ledger),
            compute=ray.data.ActorPoolStrategy(size=min(pool.workers, len(missing))),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
    for result in results.iter_rows():
        if result["failure"]:
            raise getattr(errors, result["error_class"])(result["failure"])
        rows[result["unit"]] = json.loads(result["rows"])
        progress.advance(weight(units[result["unit"]]))
    return {name: rows[name] for name in units}


class _Task:
    """Does one unit and commits it.

    An error of ours is returned, not raised: through Ray Data, and from the creation of an actor, only its text would
    come back.
    """

    def __init__(self, work: Callable[[str, Any], Rows], ledger: Ledger) -> None:
        self._work, self._ledger = work, ledger

    def __call__(self, item: dict[str, Any]) -> dict[str, str]:
        try:
            rows = self._work(item["unit"], item["content"])
        except VoxfleetError as error:
            return _result(item["unit"], [], error)
        if not any(row.get("error") for row in rows):
            self._ledger.commit(item["unit"], rows)
        return _result(item["unit"], rows, None)


class _Actor:
    """A task whose work is an object that is made once."""

    def __init__(self, work: type, arguments: tuple[Any, ...], ledger: Ledger) -> None:
        self._error: VoxfleetError | None = None
        try:
            self._task = _Task(work(*arguments), ledger)
        except VoxfleetError as error:
            self._error = error

    def __call__(self, item: dict[str, Any]) -> dict[str, str]:
        return _result(item["unit"], [], self._error) if self._error else self._task(item)


def _result(unit: str, rows: Rows, error: VoxfleetError | None) -> dict[str, str]:
    return {
        "unit": unit,
        "rows": json.dumps(rows),
        "failure": str(error or ""),
        "error_class": type(error).__name__,
    }
