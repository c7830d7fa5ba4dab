"""The one place that opens URIs: local paths, ``s3://`` and ``gs://``, through pyarrow's filesystems.

Every file is written whole and atomically: locally as a temporary name that is synced and renamed, on object
stores as a single put, or an upload in parts that counts when it is complete. A reader therefore sees a file complete
or not at all. What fails for a moment on a remote file system is tried again.

Relative paths begin at VOXFLEET_ROOT, a folder or a bucket, where that is set, else in the job's folder.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import posixpath
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep, time
from typing import Any, TypeVar

from pyarrow import fs

from voxfleet.errors import UserError

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")
TEMPORARY_SUFFIX = ".tmp"
ROOT = "VOXFLEET_ROOT"
_SHIPPED = "/runtime_resources/working_dir_files/"  # where Ray unpacks the folder that a submitted job brings

RETRY_PAUSES_S = (2.0, 6.0, 18.0)  # between the tries of one file; the clients try again within each, for seconds
# what a remote file system says when it is out of order, and not: no such bucket, no right
_PASSING = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT)"
    r"|HTTP status (429|5\d\d)|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL)"
)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.ENOTSUP)  # of Lustre, NFS and EFS without locks
_S3_ATTEMPTS, _S3_CONNECT_S, _S3_SILENCE_S = 3, 5, 10
_GCS_RETRY_S = 15

_log = logging.getLogger(__name__)
T = TypeVar("T")


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a path of this machine's file system."""
    return not _SCHEME.match(absolute(uri))


def absolute(uri: str, start: str = "") -> str:
    """``uri`` as a full one, so that workers in other folders open the same file; a relative path begins at ``start``.

    Raises:
        UserError: if it is empty or not UTF-8, or all that it could begin at is the folder that a submitted job
            brought, which ends with the job.
    """
    if not uri:
        raise UserError("a path is empty (from a variable that is not set?); name a file or folder")
    if _SCHEME.match(uri):
        return uri.rstrip("/")
    path = os.path.expanduser(uri)
    if os.path.isabs(path):
        return _utf8(os.path.abspath(path))
    root = absolute(start) if start else os.environ.get(ROOT, "")
    if _SCHEME.match(root):
        scheme, _, rest = root.partition("://")
        return f"{scheme}://{posixpath.normpath(f'{rest}/{path}')}"  # object stores do not understand ".."
    if not root and _SHIPPED in os.getcwd():
        raise UserError(
            f"{uri} is a relative path, and the folder in which this job runs ends with it; give a full path, s3://... "
            f"or gs://..., or say where relative paths begin (`voxfleet submit --root`, or {ROOT})"
        )
    return _utf8(os.path.abspath(os.path.join(os.path.expanduser(root), path)))


def _utf8(path: str) -> str:
    if not is_utf8(path):
        raise UserError(f"the path {path!a} is not UTF-8, which shards and manifests hold; rename it")
    return path


def is_utf8(name: str) -> bool:
    """Whether a name of the file system, as Python has it, is UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def join(uri: str, *parts: str) -> str:
    """``uri`` and ``parts`` joined by single slashes.

    Raises:
        UserError: if ``uri`` is empty, or a part leads out of it: many are names from manifests, which others may have
            written.
    """
    if not uri:
        raise UserError("a path is empty (from a variable that is not set?); name a file or folder")
    if leaving := next((part for part in parts if ".." in part.split("/")), None):
        raise UserError(f"the name {leaving} leads out of {uri}; get the files from somebody whom you trust")
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of ``uri`` and the path in it.

    Raises:
        UserError: if the scheme is unknown.
    """
    uri = absolute(uri)
    if is_local(uri):
        return fs.LocalFileSystem(), uri
    root, _, path = uri.partition("://")
    return _remote(root, path.split("/", 1)[0]), path


@functools.cache
def _remote(scheme: str, bucket: str) -> fs.FileSystem:
    root = f"{scheme}://{bucket}"
    try:
        return _again(root, lambda: _s3(bucket) if scheme == "s3" else _other(scheme, root))
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(
            f"cannot open {root} ({_reason(error)}); use a local path, s3://BUCKET/... or gs://BUCKET/..."
        ) from error


def _s3(bucket: str) -> fs.FileSystem:
    """S3 with a client that gives up in seconds: pyarrow's own tries 31 times, 99 s where a server is silent.

    The endpoint is read from the environment as pyarrow would; only Amazon is asked for the region of a bucket.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=None if endpoint else fs.resolve_s3_region(bucket),
        connect_timeout=_S3_CONNECT_S,
        request_timeout=_S3_SILENCE_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
        allow_delayed_open=True,  # a small file is one request
    )


def _other(scheme: str, root: str) -> fs.FileSystem:
    # unlimited, Google's client tries for minutes
    return fs.FileSystem.from_uri(root + f"?retry_limit_seconds={_GCS_RETRY_S}" * (scheme in ("gs", "gcs")))[0]


def retried(uri: str, action: Callable[[fs.FileSystem, str], T]) -> T:
    """``action(filesystem, path)``, done again after a pause while a remote file system is out of order.

    ``action`` must be one that may be done twice. Whatever opens remote files goes through here, or through Ray Data,
    which has such a loop of its own.

    Raises:
        UserError: if it stays out of order.
        OSError: what ``action`` raises otherwise.
    """
    system, path = filesystem(uri)
    return action(system, path) if is_local(uri) else _again(uri, lambda: action(system, path))


def _again(uri: str, call: Callable[[], T]) -> T:
    pauses = iter(RETRY_PAUSES_S)
    while True:
        try:
            return call()
        except OSError as error:
            if not _PASSING.search(str(error)):
                raise
            pause = next(pauses, None)
            if pause is None:
                raise UserError(
                    f"cannot reach {uri} in {len(RETRY_PAUSES_S) + 1} tries ({_reason(error)}); check the network and "
                    "the endpoint, then run the same command again"
                ) from error
            _log.warning("%s: %s; trying again in %g s", uri, _reason(error), pause)
            sleep(pause)


def _reason(error: Exception) -> str:
    """What went wrong, without what was being done."""
    line = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return line[max(line.find("AWS Error"), 0) :]


def _done(verb: str, uri: str, action: Callable[[fs.FileSystem, str], T]) -> T:
    """``retried``, with one line for what is refused: rights, a full disk, a file where a folder should be."""
    try:
        return retried(uri, action)
    except OSError as error:
        raise _refused(verb, uri, error) from error


def _refused(verb: str, uri: str, error: OSError) -> UserError:
    return UserError(f"cannot {verb} {uri} ({_reason(error)}); check the path, its rights and the space")


def _info(uri: str) -> fs.FileInfo:
    return _done("open", uri, lambda system, path: system.get_file_info(path))


def exists(uri: str) -> bool:
    """Whether a file or folder stands at ``uri``."""
    return _info(uri).type != fs.FileType.NotFound


def names(uri: str) -> list[str]:
    """Sorted names directly in the folder ``uri``; none where it does not exist. Half-written files are left out.

    Links that point to nothing are among them: what they stand for was not fetched, which is not the same as not there.
    """

    def found(system: fs.FileSystem, path: str) -> list[str]:
        if isinstance(system, fs.LocalFileSystem):  # pyarrow leaves such links out, and cannot read names beyond UTF-8
            return os.listdir(path) if os.path.lexists(path) and not is_broken_link(path) else []
        return [info.base_name for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True))]

    return sorted(name for name in _done("list", uri, found) if not name.endswith(TEMPORARY_SUFFIX))


def is_broken_link(uri: str) -> bool:
    """Whether a link of the local file system stands at ``uri`` that points to nothing."""
    return is_local(uri) and os.path.islink(absolute(uri)) and not os.path.exists(absolute(uri))


def check_writable(uri: str) -> None:
    """Make sure that files can be made at or below the folder ``uri``, as far as a local file system tells before.

    Raises:
        UserError: if a file stands in the way, or a right is missing.
    """
    if is_local(uri):
        path = Path(absolute(uri))
        while not os.path.lexists(path):
            path = path.parent
        if not path.is_dir():
            raise _refused("write", uri, NotADirectoryError(errno.ENOTDIR, f"{path} is not a folder"))
        if not os.access(path, os.W_OK | os.X_OK):
            raise _refused("write", uri, PermissionError(errno.EACCES, f"no right to write in {path}"))


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold the file ``uri`` until the end or the death of this process.

    Nothing is held where it is remote, or on a file system without locks, which is said. Folders that were made for it
    are removed again where nothing else was put beside it.

    Raises:
        BlockingIOError: if another process holds it.
        UserError: if it cannot be made.
    """
    if not is_local(uri):
        yield
        return
    path = Path(absolute(uri))
    try:
        new_folders = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise _refused("write", uri, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _refused("lock", uri, error) from error
            _log.warning("%s: this file system has no locks; see that no other run works in its folder", path.parent)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # of a folder that was removed, or holds something else by now
                if new_folders and list(path.parent.iterdir()) == [path]:
                    path.unlink()
                    for folder in new_folders:
                        folder.rmdir()


def remove_unfinished(uri: str, older_s: float) -> None:
    """Remove the files that writers which were killed left half-written in the local folder ``uri``.

    Those that were touched in the last ``older_s`` seconds may have a writer.
    """
    if not is_local(uri):
        return
    for path in Path(absolute(uri)).glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):  # another run does the same
            if path.stat().st_mtime < time() - older_s:
                path.unlink()


def size(uri: str) -> int:
    """Bytes of the file at ``uri``.

    Raises:
        UserError: if there is no such file.
    """
    info = _info(uri)
    if info.type != fs.FileType.File:
        raise _no_file(uri, info)
    return info.size


def _no_file(uri: str, info: fs.FileInfo) -> UserError:
    path = Path(absolute(uri))
    places = map(str, (path, *path.parents)) if is_local(uri) else ()
    if link := next(filter(is_broken_link, places), None):
        return UserError(
            f"{link} is a link to {os.readlink(link)}, which is not there; if git-annex or DataLad keeps it, "
            f"run: datalad get {link}"
        )
    state = "does not exist" if info.type == fs.FileType.NotFound else "is not a file"
    return UserError(f"{uri} {state}; check the path")


def read_bytes(uri: str) -> bytes:
    """All bytes of the file at ``uri``.

    Raises:
        UserError: if there is no such file, or it cannot be read.
    """

    def read(system: fs.FileSystem, path: str) -> bytes:
        info = system.get_file_info(path)
        if info.type != fs.FileType.File:
            raise _no_file(uri, info)
        with system.open_input_stream(path, compression=None) as stream:
            return stream.read()

    return _done("read", uri, read)


def write_bytes(uri: str, data: bytes, *, scratch: str | None = None) -> str:
    """Write ``data`` to ``uri`` atomically, making its folder, and return the sha256 of ``data`` in hex.

    A local file has its temporary name beside it, or in the folder ``scratch`` of the same file system: there who
    removes what killed writers left finds all of it.

    Raises:
        UserError: if the file system refuses; what stood there before still does.
    """
    sha256 = hashlib.sha256(data).hexdigest()  # before a file is begun: refuses what is not bytes

    def write(system: fs.FileSystem, path: str) -> None:
        if isinstance(system, fs.LocalFileSystem):
            _write_local(Path(path), data, Path(absolute(scratch)) if scratch else Path(path).parent)
        else:
            with system.open_output_stream(path, compression=None) as stream:
                stream.write(data)

    _done("write", uri, write)
    return sha256


def _write_local(path: Path, data: bytes, scratch: Path) -> None:
    for folder in (path.parent, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    temporary = scratch / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(uri: str) -> None:
    """Remove the file or the whole folder at ``uri``; nothing there is fine.

    Raises:
        UserError: if the file system refuses.
    """

    def delete(system: fs.FileSystem, path: str) -> None:
        kind = system.get_file_info(path).type
        if kind == fs.FileType.Directory:
            system.delete_dir(path)
        elif kind != fs.FileType.NotFound:
            system.delete_file(path)

    _done("remove", uri, delete)


def read_json(uri: str) -> Any:
    """The JSON document at ``uri``.

    Raises:
        UserError: if it is missing or not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except (ValueError, RecursionError) as error:  # of numbers of thousands of digits, and of a thousand brackets, too
        raise UserError(f"{uri} is not valid JSON ({error}); make it again with the job that wrote it") from error


def write_json(uri: str, document: Any) -> str:
    """Write ``document`` as indented JSON, atomically, and return the sha256 of its bytes."""
    return write_bytes(uri, (json.dumps(document, indent=2) + "\n").encode())
