"""Decoding latents: the names of what is made, and the shape in which it is made."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from voxfleet.config.generation import DecodeConfig
from voxfleet.engine.decode import Decoding, bids_ids
from voxfleet.errors import UserError
from voxfleet.packages import load_autoencoder


@pytest.mark.parametrize(
    ("subject", "name"), [("sub-0001", "sub-0001"), ("HC_01 b", "sub-HC01b"), ("../../etc/x", "sub-etcx")]
)
def test_any_subject_gets_a_bids_id_that_stays_in_the_dataset(subject, name):
    assert bids_ids([subject, "sub-other"]) == {subject: name, "sub-other": "sub-other"}


@pytest.mark.parametrize("subjects", [["a_b", "ab"], ["___"]])
def test_subjects_that_would_share_an_id_are_refused(subjects):
    with pytest.raises(UserError, match=re.escape(f"{subjects[-1]!r} have no BIDS ids of their own")):
        bids_ids(subjects)


def test_batches_have_one_shape_however_long_a_shard_is(workspace, tmp_path):
    names = {
        "output": str(tmp_path),
        "data": str(workspace.demo / "latents"),
        "autoencoder": str(workspace.demo / "vae"),
    }
    decoding = Decoding(DecodeConfig(**names, batch_size=4), False, np.eye(4).tolist())
    shapes, autoencoder = [], load_autoencoder(names["autoencoder"])

    def decode(latents):
        shapes.append(tuple(latents.shape))
        return autoencoder.decode(latents)

    decoding.autoencoder = SimpleNamespace(decode=decode, fingerprint="0")
    rows = decoding("part-00000.parquet", [f"{place}.nii.gz" for place in range(5)])
    assert shapes == [(4, 4, 8, 10, 8)] * 2
    assert len({row["sha256"] for row in rows}) == 5
