"""How fast a large set of latents streams through a small object store, beside plain pyarrow on the same files.

python docs/benchmarks/streaming.py FOLDER [ROWS]   (FOLDER gets the made-up set, 4.3 GB for 10,000 rows)
"""

import contextlib
import sys
import time

import numpy as np
import psutil
import pyarrow.parquet as pq
import ray
from made_up import make_latents

from voxfleet.data.index import read_index
from voxfleet.data.plan import Plan
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.engine.cluster import quiet_data
from voxfleet.engine.ingest import open_splits

SHAPE, BATCH, STORE = (4, 28, 34, 28), 32, 1 << 30
COLUMNS = ("mu", "logvar")


def plain(files: list[str]) -> tuple[int, float]:
    """All rows, in the order of the files, one row group after another: rows and seconds."""
    began, rows = time.perf_counter(), 0
    for path in files:
        file = pq.ParquetFile(path)
        for number in range(file.metadata.num_row_groups):
            table = file.read_row_group(number, columns=list(COLUMNS), use_threads=False)
            arrays = [table[name].combine_chunks().to_numpy_ndarray() for name in COLUMNS]
            rows += len(arrays[0])
    return rows, time.perf_counter() - began


def streamed(folder: str, manifest: Manifest, epoch: int) -> tuple[int, float, float]:
    """An epoch of the plan in batches: rows, seconds from the second batch on, seconds to the first."""
    reader = open_splits(read_index(folder, manifest, COLUMNS), COLUMNS, "streamed")["train"].open()
    index = reader.index
    plan = Plan(index.labels, index.groups, BATCH, index.row_bytes(COLUMNS), 0)
    order, sizes = plan.order(epoch), [min(BATCH, plan.draws - start) for start in range(0, plan.draws, BATCH)]
    began, rows, first = time.perf_counter(), 0, 0.0
    with contextlib.closing(reader.batches(order, sizes, plan.units(0, 1, 0))) as batches:
        for batch in batches:
            assert batch["mu"].shape[1:] == SHAPE
            if not first:
                first, began = time.perf_counter() - began, time.perf_counter()
            else:
                rows += len(batch["label"])
    return rows, time.perf_counter() - began, first


def main(folder: str, rows: int) -> None:
    """Make the set where it is missing, and measure both in turn."""
    make_latents(folder, ["train"] * rows, SHAPE, np.float16)
    ray.init(address="local", num_cpus=3, object_store_memory=STORE, include_dashboard=False, log_to_driver=False)
    quiet_data()
    manifest = read_manifest(folder, "latents")
    files = manifest.files(folder)
    plain(files)  # warms the page cache
    began = time.perf_counter()
    read_index(folder, manifest, COLUMNS)
    print(f"index of {len(files)} shards in {time.perf_counter() - began:.2f} s")
    for epoch in range(3):
        read, seconds = plain(files)
        got, taken, first = streamed(folder, manifest, epoch)
        memory = psutil.Process().memory_full_info().uss / 1e6
        ratio = (got / taken) / (read / seconds)
        print(
            f"pyarrow {read / seconds:.0f} rows/s, streamed {got / taken:.0f} rows/s, ratio {ratio:.2f}; first batch "
            f"after {first:.1f} s; private memory of the consumer {memory:.0f} MB"
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
