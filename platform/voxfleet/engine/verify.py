"""Checking that what a campaign committed is still there and whole."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from voxfleet import storage
from voxfleet.data.campaign import SCHEMA
from voxfleet.data.synthetic import MANIFEST, sidecar_file
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.console import Progress, say
from voxfleet.engine.units import Ledger

_AT_ONCE = 64  # files of a task
_SHOWN = 5


def forget_damaged(folder: str, ledger: Ledger) -> None:
    """Take samples whose files are missing or damaged out of the ledger, so that they count as missing."""
    rows = ledger.table(SCHEMA, ["reason", "file", "sha256", "sidecar_sha256", "latents", "latents_sha256"])
    rows = rows.filter(pc.equal(rows["reason"], ""))
    sidecars = _pairs(rows, "file", "sidecar_sha256", sidecar_file)
    files = dict([*_pairs(rows, "file", "sha256"), *sidecars, *_pairs(rows, "latents", "latents_sha256")])
    progress = Progress("verify", len(files), "files")
    damaged = set(_damaged(folder, list(files.items()), progress))
    progress.finish(f"{len(files) - len(damaged)} files are whole, {len(damaged)} are missing or damaged")
    for file in sorted(damaged)[:_SHOWN]:
        say(f"verify: {file} is missing or damaged; its samples are made again", level="warning")
    if damaged:
        _forget(folder, ledger, damaged)


def _pairs(
    rows: pa.Table, file: str, sha256: str, named: Callable[[str], str] = lambda name: name
) -> Iterator[tuple[str, str]]:
    """Files and their hashes, where there are any."""
    pairs = zip(rows[file].to_pylist(), rows[sha256].to_pylist(), strict=True)
    return ((named(name), mark) for name, mark in pairs if name)


def _forget(folder: str, ledger: Ledger, damaged: set[str]) -> None:
    storage.remove(storage.join(folder, MANIFEST))  # which says that all is there
    for unit in sorted(ledger.done()):
        rows = ledger.rows(unit)
        broken = [row for row in rows if damaged & _files(row)]
        shards = {row["latents"] for row in broken} - {None}  # a shard is made again as a whole
        left = [row for row in rows if row not in broken and row["latents"] not in shards]
        if len(left) < len(rows):
            ledger.commit(unit, left, SCHEMA)
        for shard in shards:
            storage.remove(storage.join(folder, shard))


def _files(row: dict[str, Any]) -> set[str]:
    images = {row["file"], sidecar_file(row["file"])} if row["file"] else set()
    return images | ({row["latents"]} if row["latents"] else set())


def _damaged(folder: str, files: list[tuple[str, str]], progress: Progress) -> Iterable[str]:
    """The files that are not what their hashes say; each is read by some task."""
    parts = [files[start : start + _AT_ONCE] for start in range(0, len(files), _AT_ONCE)]
    waiting = {_check.remote(folder, part): len(part) for part in parts}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        progress.advance(waiting.pop(done))
        with ray_errors():
            yield from ray.get(done)


@ray.remote
def _check(folder: str, files: list[tuple[str, str]]) -> list[str]:
    return [name for name, sha256 in files if _sha256(storage.join(folder, name)) != sha256]


def _sha256(uri: str) -> str | None:
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest() if storage.exists(uri) else None
