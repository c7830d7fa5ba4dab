"""Latents that are wrong end a training with one line that names them, before a worker starts."""

import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxfleet.cli import main
from voxfleet.data.shards import read_manifest, shard_name, table_bytes, write_manifest

pytestmark = pytest.mark.usefixtures("ray_session")
MODEL = ["--model.in_channels", "2", "--model.input_size", "[4,4,4]", "--model.patch_size", "[2,2,2]"]
SMALL = ["--model.hidden_size", "24", "--model.depth", "1", "--model.num_heads", "2"]


def truncate(folder):
    path = folder / shard_name(1)
    path.write_bytes(path.read_bytes()[:-200])


def damage(folder):
    path = folder / shard_name(1)
    data = bytearray(path.read_bytes())
    data[300:700] = bytes(400)  # in a page of numbers; the footer is whole
    path.write_bytes(bytes(data))


def remove(folder):
    (folder / shard_name(1)).unlink()


def rewrite(change):
    def apply(folder):
        path = folder / shard_name(1)
        path.write_bytes(table_bytes(change(pq.read_table(path))))

    return apply


def with_manifest(**changes):
    def apply(folder):
        write_manifest(str(folder), dataclasses.replace(read_manifest(str(folder), "latents"), **changes))

    return apply


def without_key(folder):
    document = json.loads((folder / "manifest.json").read_text())
    del document["std"]
    (folder / "manifest.json").write_text(json.dumps(document))


BAD = {
    "truncated": (truncate, r"part-00001\.parquet is missing or damaged"),
    "damaged": (damage, r"part-00001\.parquet is missing or damaged"),
    "missing": (remove, r"part-00001\.parquet is missing or damaged"),
    "rows": (rewrite(lambda table: table.slice(1)), r"part-00001\.parquet has 4 rows, the manifest says 5"),
    "column": (rewrite(lambda table: table.drop_columns("logvar")), r"part-00001\.parquet has no column logvar"),
    "shape": (
        with_manifest(shape=(2, 4, 4, 8)),
        r"model\.input_size is \(4, 4, 4\), but the latents in .* \(4, 4, 8\)",
    ),
    "no shards": (with_manifest(shards=[]), r"the manifest lists no shards"),
    "a class": (with_manifest(classes=("HC", "TLE", "FCD")), r"model\.num_classes is 2, but .* have 3"),
    "manifest": (
        lambda folder: (folder / "manifest.json").unlink(),
        r"holds no finished latents \(no manifest\.json\)",
    ),
    "key": (without_key, r"manifest\.json has no key std; make the shards again"),
}


def train(folder, tmp_path, *more):
    paths = ["--data", str(folder), "--output", str(tmp_path / "runs"), "--name", "run"]
    return main(["train", *MODEL, *SMALL, *paths, "--trainer.batch_size", "4", *more])


@pytest.fixture
def refused(tmp_path, latents, capsys):
    """The one line that a training on changed latents ends with."""

    def run(change, *more, **options):
        folder, _ = latents(rows=11, **options)
        change(tmp_path / "latents")
        assert train(folder, tmp_path, *more) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("voxfleet: error: ")
        assert not list((tmp_path / "runs").glob("**/model.safetensors"))
        return lines[-1]

    return run


@pytest.mark.parametrize("name", BAD)
def test_wrong_shards_and_manifests(refused, name):
    change, message = BAD[name]
    assert re.search(message, refused(change))


def test_a_shard_of_another_shape(refused, tmp_path, latents):
    latents("other", rows=11, shape=(2, 4, 4, 8))

    def swap(folder):
        (folder / shard_name(1)).write_bytes((tmp_path / "other" / shard_name(1)).read_bytes())

    line = refused(swap)
    assert "part-00001.parquet: mu has shape (2, 4, 4, 8), the manifest says (2, 4, 4, 4)" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "the shards hold numbers that are not finite for {}; make"), ("val", "not finite for {}, of split val")],
)
def test_a_latent_that_is_not_a_number_is_named_by_its_subject(refused, split, message):
    def spoil(table):
        values = table["mu"].combine_chunks().to_numpy_ndarray().copy()
        row = table["split"].to_pylist().index(split)
        values[row, 0, 1, 1, 1] = np.nan
        spoilt.append(table["subject_id"][row].as_py())
        return table.set_column(
            table.schema.get_field_index("mu"), "mu", pa.FixedShapeTensorArray.from_numpy_ndarray(values)
        )

    spoilt = []
    line = refused(rewrite(spoil), "--trainer.epochs", "1", "--resources.workers", "1")
    assert message.format(spoilt[0]) in line


def test_splits_and_classes_without_samples(refused):
    assert "has no sample in split val" in refused(lambda folder: None, val=0)


def test_a_class_without_samples(refused):
    assert "has no sample of class TLE in split train" in refused(lambda folder: None, minority=1000)


def test_more_workers_than_draws(refused):
    line = refused(lambda folder: None, "--trainer.batch_size", "2", "--resources.workers", "3")
    assert "there are 3 workers for 2 draws of trainer.batch_size; lower resources.workers" in line
