"""The one place that opens URIs: local paths, ``s3://`` and ``gs://``, through pyarrow's filesystems.

Every file is written whole and atomically: locally as a temporary name that is synced and renamed, on object
stores as a single put. A reader therefore sees a file complete or not at all.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import fs

from voxfleet.errors import UserError

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")
TEMPORARY_SUFFIX = ".tmp"


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a path of this machine's file system."""
    return not _SCHEME.match(uri)


def absolute(uri: str) -> str:
    """``uri`` with a local path made absolute, so that workers in other folders open the same file."""
    return os.path.abspath(os.path.expanduser(uri)) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """``uri`` and ``parts`` joined by single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of ``uri`` and the path in it.

    Raises:
        UserError: if the scheme is unknown.
    """
    if is_local(uri):
        return fs.LocalFileSystem(), absolute(uri)
    root, _, path = uri.partition("://")
    return _remote(root, path.split("/", 1)[0]), path


@functools.cache
def _remote(scheme: str, bucket: str) -> fs.FileSystem:
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except (ValueError, OSError) as error:
        raise UserError(
            f"cannot open {scheme}://{bucket} ({error}); use a local path, s3://BUCKET/... or gs://BUCKET/..."
        ) from error


@contextlib.contextmanager
def _refusals(verb: str, uri: str) -> Iterator[None]:
    """Say in one line what the file system refuses: rights, a full disk, a file where a folder should be."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or (str(error).splitlines() or ["unknown error"])[0]
        raise UserError(f"cannot {verb} {uri} ({reason}); check the path, its rights and the space") from error


def exists(uri: str) -> bool:
    """Whether a file or folder stands at ``uri``."""
    system, path = filesystem(uri)
    with _refusals("open", uri):
        return system.get_file_info(path).type != fs.FileType.NotFound


def names(uri: str) -> list[str]:
    """Sorted names directly in the folder ``uri``; none where it does not exist. Half-written files are left out."""
    system, path = filesystem(uri)
    with _refusals("list", uri):
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if not info.base_name.endswith(TEMPORARY_SUFFIX))


def read_bytes(uri: str) -> bytes:
    """All bytes of the file at ``uri``.

    Raises:
        UserError: if there is no such file, or it cannot be read.
    """
    system, path = filesystem(uri)
    with _refusals("read", uri):
        kind = system.get_file_info(path).type
        if kind != fs.FileType.File:
            state = "does not exist" if kind == fs.FileType.NotFound else "is not a file"
            raise UserError(f"{uri} {state}; check the path")
        with system.open_input_stream(path, compression=None) as stream:
            return stream.read()


def write_bytes(uri: str, data: bytes) -> str:
    """Write ``data`` to ``uri`` atomically, making its folder, and return the sha256 of ``data`` in hex.

    Raises:
        UserError: if the file system refuses.
    """
    system, path = filesystem(uri)
    with _refusals("write", uri):
        if isinstance(system, fs.LocalFileSystem):
            _write_local(Path(path), data)
        else:
            with system.open_output_stream(path, compression=None) as stream:
                stream.write(data)
    return hashlib.sha256(data).hexdigest()


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(uri: str) -> None:
    """Remove the file at ``uri``.

    Raises:
        UserError: if the file system refuses.
    """
    system, path = filesystem(uri)
    with _refusals("remove", uri):
        system.delete_file(path)


def read_json(uri: str) -> Any:
    """The JSON document at ``uri``.

    Raises:
        UserError: if it is missing or not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{uri} is not valid JSON ({error}); make it again with the job that wrote it") from error


def write_json(uri: str, document: Any) -> str:
    """Write ``document`` as indented JSON, atomically, and return the sha256 of its bytes."""
    return write_bytes(uri, (json.dumps(document, indent=2) + "\n").encode())
