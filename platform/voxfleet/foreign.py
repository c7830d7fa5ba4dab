"""Files of arrays made elsewhere: .npy, .npz, .safetensors and PyTorch's .pt. Nothing in them is unpickled."""

import io
import pickle
import posixpath
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch

from voxfleet import storage
from voxfleet.errors import UserError


def _numpy(data: bytes) -> Any:
    content = np.load(io.BytesIO(data), allow_pickle=False)
    return content if isinstance(content, np.ndarray) else dict(content)


def _torch(data: bytes) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[bytes], Any]] = {
    ".npy": _numpy,
    ".npz": _numpy,
    ".safetensors": safetensors.torch.load,
    ".pt": _torch,
    ".pth": _torch,
}


def read_foreign(uri: str) -> Any:
    """What the file at ``uri`` holds: an array, a tensor, or a dict of them, as its format has it.

    Raises:
        UserError: if it is missing, damaged, of an unknown format, or holds objects besides arrays and plain values.
    """
    return parse_foreign(uri, storage.read_bytes(uri))


def parse_foreign(uri: str, data: bytes) -> Any:
    """``read_foreign`` of the file's ``data``, which has been read.

    Raises:
        UserError: as ``read_foreign``.
    """
    ending = posixpath.splitext(uri)[1]
    if ending not in READERS:
        raise UserError(f"{uri} is of no known format; give one of {', '.join(READERS)}")
    try:
        return READERS[ending](data)
    except Exception as error:  # whatever the format's reader throws at bytes that are not its own
        raise UserError(f"{uri} {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL ([\w.]+)", text)):
        return (
            f"holds an object of {found[1]}, and nothing is unpickled here; save tensors and plain values alone, "
            "such as torch.save(model.state_dict(), ...)"
        )
    if "TorchScript" in text:
        return "is a TorchScript program, which is not run here; save model.state_dict() instead"
    if "pickled" in text or "allow_pickle" in text:
        return "is no plain array, and nothing is unpickled here; save arrays of numbers"
    return f"is damaged, or not of the format that its name says ({type(error).__name__}); copy or save it again"
