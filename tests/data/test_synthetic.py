"""The writer of synthetic volumes: its rows are in the batch's order, however many requests wait at once."""

import threading
import time

import numpy as np
import pytest
from deadlines import extend

from voxfleet import storage
from voxfleet.data.campaign import Sample
from voxfleet.data.synthetic import PUTS_AT_ONCE, SaveConfig, Writer, image_file

GEOMETRY = {"affine": np.eye(4).tolist(), "spacing_mm": [1, 1, 1]}
BATCH = [Sample(1, "TLE", index, base_seed=0) for index in range(PUTS_AT_ONCE + 3)]
VOLUMES = np.random.default_rng(0).random((len(BATCH), 6, 8, 6), dtype=np.float32)
MADE = {"checks": [{"finite": 1.0}] * len(BATCH), "mode": "eager"}


def rows_of(folder):
    return Writer(folder, SaveConfig(), {}, GEOMETRY, "T1w", {})(BATCH, MADE, VOLUMES)


def test_requests_to_a_bucket_wait_at_the_same_time(monkeypatch):
    together, written = threading.Barrier(PUTS_AT_ONCE), []

    def put(uri, data, **_):
        if len(written) < PUTS_AT_ONCE:  # the first of each hand waits for those of all others
            written.append(uri)
            together.wait(timeout=extend(60))
        time.sleep(0.001)
        return f"hash of {uri}"

    monkeypatch.setattr(storage, "write_bytes", put)
    rows = rows_of("s3://bucket/out")
    assert [row["index"] for row in rows] == list(range(len(BATCH)))
    assert [row["sha256"] for row in rows] == [f"hash of s3://bucket/out/{row['file']}" for row in rows]


def test_a_bucket_and_a_folder_get_the_same_rows(s3, tmp_path):
    there, here = rows_of(f"{s3}/synthetic"), rows_of(str(tmp_path))
    assert there == here
    assert {row["mode"] for row in here} == {"eager"}
    for row in here:
        assert storage.read_bytes(f"{s3}/synthetic/{row['file']}") == (tmp_path / row["file"]).read_bytes()


def test_what_a_hand_meets_ends_the_batch(monkeypatch):
    def put(uri, data, **_):
        raise OSError("no")

    monkeypatch.setattr(storage, "write_bytes", put)
    with pytest.raises(OSError, match="no"):
        rows_of("s3://bucket/out")


def test_names_end_with_the_suffix_of_the_training_images():
    sample = Sample(1, "TLE", 7, base_seed=0)
    name = "sub-synTLE0000007/anat/sub-synTLE0000007_desc-synth_FLAIR.nii"
    assert image_file(sample, SaveConfig(), "FLAIR") == f"{name}.gz"
    assert image_file(sample, SaveConfig(compress=False), "FLAIR") == name
