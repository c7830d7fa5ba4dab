"""Latent shards and the statistics of their draws."""

import numpy as np
import pytest

from voxfleet.data.latents import manifest_fields, write_latents
from voxfleet.data.shards import read_shard, tensors
from voxfleet.errors import UserError


def columns(splits):
    ids = [f"p{i}" for i in range(len(splits))]
    return {"subject_id": ids, "label": [0] * len(ids), "split": splits, "source": ids}


def test_statistics_are_those_of_draws_of_the_training_rows_of_all_shards(tmp_path):
    rng = np.random.default_rng(0)
    mu = rng.normal(3, 2, size=(6, 2, 4, 5, 6)).astype(np.float32)
    logvar = rng.normal(-1, 1, size=mu.shape).astype(np.float32)
    splits = ["train", "val", "train", "test", "train", "val"]
    parts = {"a": slice(0, 3), "b": slice(3, 5), "c": slice(5, 6)}  # the last has no training row
    written = [
        write_latents(str(tmp_path), name, columns(splits[part]), mu[part], logvar[part], "float32")
        for name, part in parts.items()
    ]
    fields = manifest_fields(iter(written))
    train = np.array(splits) == "train"
    draws = mu[train] + np.exp(logvar[train] / 2) * rng.standard_normal((500, *mu[train].shape))
    np.testing.assert_allclose(fields["mean"], draws.mean(axis=(0, 1, 3, 4, 5)), rtol=2e-3)
    np.testing.assert_allclose(fields["std"], draws.std(axis=(0, 1, 3, 4, 5)), rtol=2e-3)
    assert [(shard["file"], shard["rows"]) for shard in fields["shards"]] == [("a", 3), ("b", 2), ("c", 1)]
    np.testing.assert_array_equal(tensors(read_shard(str(tmp_path / "b")), "mu"), mu[3:5])


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    mu = np.full((1, 1, 2, 2, 2), 1e5, dtype=np.float32)
    with pytest.raises(UserError, match=r"p0 .* float16"):
        write_latents(str(tmp_path), "a", columns(["train"]), mu, np.zeros_like(mu), "float16")
    assert not (tmp_path / "a").exists()
    write_latents(str(tmp_path), "a", columns(["train"]), mu, np.zeros_like(mu), "float32")
