"""Files that other programs made: every format gives the same numbers, and nothing is unpickled."""

import argparse
import gzip
import io
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from voxfleet.errors import UserError
from voxfleet.foreign import read_foreign

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)


class Mine:
    """What must never be built from a file."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def numpy_file(save, *arrays, **named):
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def write(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npy", numpy_file(np.save, ARRAY)),
        ("a.npz", numpy_file(np.savez, mu=ARRAY)),
        ("a.npz", numpy_file(np.savez_compressed, mu=ARRAY)),
        ("a.safetensors", safetensors.torch.save({"mu": torch.from_numpy(ARRAY)})),
        ("a.pt", saved(torch.from_numpy(ARRAY))),
        ("a.pth", saved({"mu": torch.nn.Parameter(torch.from_numpy(ARRAY))})),
        ("a.pt", saved(torch.from_numpy(ARRAY), _use_new_zipfile_serialization=False)),
        *[(name, saved(torch.from_numpy(ARRAY))) for name in ("a.ckpt", "a.bin", "A.PT", "a.pt.tar", "a", "a.npy")],
        ("a.pt", safetensors.torch.save({"mu": torch.from_numpy(ARRAY)})),
        ("a.bin", numpy_file(np.savez, mu=ARRAY)),
    ],
)
def test_every_format_is_read(tmp_path, name, data):
    content = read_foreign(write(tmp_path, name, data))
    array = content["mu"] if isinstance(content, dict) else content
    array = array.detach().numpy() if isinstance(array, torch.Tensor) else array
    np.testing.assert_array_equal(array, ARRAY)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.pt", saved(Mine()), "holds an object of _pytest.outcomes.*nothing is unpickled"),
        ("a.pt", saved({"mu": Mine()}), "nothing is unpickled"),
        ("a.ckpt", saved({"mu": Mine()}, _use_new_zipfile_serialization=False), "nothing is unpickled"),
        ("a.npy", pickle.dumps(Mine(), protocol=2), "nothing is unpickled"),
        ("a.npy", pickle.dumps(Mine()), "no known format"),
        ("a.pt", saved(argparse.Namespace(lr=1)), "holds an object of argparse.Namespace"),
        ("a.pt", saved({"best": np.float64(0.5)}), "holds an object of numpy"),
        ("a.npy", numpy_file(np.save, np.array([Mine()], dtype=object)), "nothing is unpickled"),
        ("a.npz", numpy_file(np.savez, mu=np.array([Mine()], dtype=object)), "nothing is unpickled"),
        ("a.pt", saved(torch.zeros(999))[:-500], "damaged"),
        ("a.pt", b"", "damaged"),
        ("a.pt", b"this is a text", "damaged"),
        ("a.npz", numpy_file(np.savez, mu=ARRAY)[:-30], "damaged"),
        ("a.npy", numpy_file(np.save, ARRAY)[:-4], "damaged"),
        ("a.safetensors", safetensors.torch.save({"a": torch.zeros(9)})[:-4], "damaged"),
        ("a.nii.gz", gzip.compress(bytes(352)), "no known format"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("a.npy", b"/annex/objects/MD5E-s99--00.npy\n", "datalad get"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, data, words):
    uri = write(tmp_path, name, data)
    with pytest.raises(UserError, match=rf"^{uri}.*{words}") as caught:
        read_foreign(uri)
    assert "\n" not in str(caught.value)


def test_a_program_is_not_run(tmp_path):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    with pytest.raises(UserError, match="TorchScript"):
        read_foreign(write(tmp_path, "a.pt", buffer.getvalue()))
