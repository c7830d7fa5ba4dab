"""Rows are read from many shards and row groups in the order in which they are asked for."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxfleet.data import shards
from voxfleet.data.index import read_index
from voxfleet.data.shards import Manifest, shard_name, table_bytes, tensor_table
from voxfleet.errors import UserError


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Of fifteen rows in three shards, each of several row groups."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 100)  # one or two rows
    listed = []
    for index in range(3):
        numbers = range(5 * index, 5 * index + 5)
        columns = {"subject_id": [f"sub-{n:02d}" for n in numbers], "label": [n % 2 for n in numbers]}
        columns |= {"split": ["train"] * 5, "source": columns["subject_id"]}
        volumes = np.stack([np.full((2, 2, 2), n, np.float32) for n in numbers])
        (tmp_path / shard_name(index)).write_bytes(table_bytes(tensor_table(columns, {"volume": volumes})))
        listed.append({"file": shard_name(index), "rows": 5, "sha256": str(index)})
    known = {"kind": "volumes", "shape": (2, 2, 2), "classes": ("HC", "TLE"), "counts": {}, "mean": [0.0], "std": [1.0]}
    return read_index(str(tmp_path), Manifest(**known, geometry={}, limits={}, shards=listed), ("volume",))["train"]


def test_rows_of_many_shards_come_in_the_order_asked_for(index):
    assert len(set(index.groups)) > 3
    rows = np.random.default_rng(0).permutation(15)[:11]
    found = index.read(rows, ("volume",))
    np.testing.assert_array_equal(found["volume"][:, 0, 0, 0], rows)
    np.testing.assert_array_equal(found["label"], rows % 2)


def test_a_row_group_that_holds_fewer_rows_than_its_file_says_is_damage(index, monkeypatch):
    read = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda *a, **k: read(*a, **k).slice(1))
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged \(\d rows of \d\)"):
        index.read(np.arange(3), ("volume",))
