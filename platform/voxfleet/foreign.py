"""Files of arrays made elsewhere: NumPy's, safetensors and PyTorch's, told apart by content. Nothing is unpickled."""

import io
import pickle
import re
import warnings
from typing import Any

import numpy as np
import safetensors.torch
import torch

from voxfleet import storage
from voxfleet.errors import UserError

_MAX_POINTER_BYTES = 1024


def _numpy(data: bytes) -> Any:
    content = np.load(io.BytesIO(data), allow_pickle=False)
    return content if isinstance(content, np.ndarray) else dict(content)


def _torch(data: bytes) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _read(data: bytes) -> Any:
    """Read ``data`` in the format that its first bytes show; names say little (.ckpt, .bin, .pt.tar, no ending)."""
    first_member = data[30 : 30 + int.from_bytes(data[26:28], "little")] if data.startswith(b"PK") else b""
    if data.startswith(b"\x93NUMPY") or first_member.endswith(b".npy"):
        return _numpy(data)
    if data[8:9] == b"{":  # JSON after its length
        return safetensors.torch.load(data)
    return _torch(data)


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
    if len(data) < _MAX_POINTER_BYTES and (data.startswith(b"version https://git-lfs") or b"annex/objects/" in data):
        raise UserError(f"{uri} only points to a file; fetch that with git lfs pull or datalad get")
    try:
        return _read(data)
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
    return (
        f"is damaged, or of no known format ({type(error).__name__}): give a .npy, .npz, .safetensors or PyTorch file; "
        "copy or save it again"
    )
