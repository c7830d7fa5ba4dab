"""Files on a real S3 server: what works, what is tried again, and what is one line at once."""

import contextlib
import hashlib
import http.server
import pickle
import socket
import threading

import pyarrow as pa
import pytest
from pyarrow import fs
from s3_proxy import Proxy

from voxfleet import storage
from voxfleet.data.index import read_index
from voxfleet.data.shards import Manifest, table_bytes
from voxfleet.errors import UserError


@pytest.fixture
def folder(s3, request):
    return f"{s3}/{request.node.name}"


@pytest.fixture
def paused(monkeypatch):
    """The pauses that were made, in no time."""
    pauses = []
    monkeypatch.setattr(storage, "sleep", pauses.append)
    return pauses


@contextlib.contextmanager
def connected_to(port):
    """Files of s3:// are those of the server at ``port``, whose client does not try again by itself."""
    storage._remote.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_S3_ATTEMPTS", 1)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield
    storage._remote.cache_clear()


@contextlib.contextmanager
def proxy(behind, **behaviour):
    with Proxy.listening(behind, **behaviour) as (handler, port), connected_to(port):
        yield handler


def test_files_are_written_found_read_and_removed(folder):
    uri, large = storage.join(folder, "a", "b.bin"), storage.join(folder, "large")
    assert not storage.exists(uri)
    assert storage.names(folder) == []
    for data in (b"first, and longer", b"second"):
        assert storage.write_bytes(uri, data) == hashlib.sha256(data).hexdigest()
        assert storage.read_bytes(uri) == data
        assert storage.size(uri) == len(data)
    storage.write_bytes(large, bytes(12 * 2**20))  # in more than one part
    assert storage.size(large) == len(storage.read_bytes(large)) == 12 * 2**20
    assert storage.names(folder) == ["a", "large"]
    storage.remove(uri)
    assert not storage.exists(uri)
    storage.remove(folder)
    storage.remove(folder)  # nothing there is fine
    assert not storage.exists(large)
    assert storage.names(folder) == []


def test_what_is_not_bytes_leaves_no_empty_object(folder):
    with pytest.raises(TypeError):
        storage.write_bytes(f"{folder}/x", "not bytes")
    assert not storage.exists(f"{folder}/x")


def test_a_small_file_is_one_request(s3_port, folder):
    with proxy(s3_port) as server:
        storage.write_bytes(f"{folder}/x", b"data")
        assert server.requests == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda uri: storage.write_bytes(uri, b"new"),
        storage.read_bytes,
        storage.exists,
        storage.size,
        storage.names,
        storage.remove,
    ],
    ids=["write", "read", "exists", "size", "names", "remove"],
)
def test_an_overloaded_server_is_asked_again_after_growing_pauses(s3_port, folder, paused, monkeypatch, call):
    uri, warnings = f"{folder}/x", []
    monkeypatch.setattr(storage._log, "warning", lambda text, *values: warnings.append(text % values))
    storage.write_bytes(uri, b"data")
    expected = call(uri)
    storage.write_bytes(uri, b"data")
    with proxy(s3_port, failures=3):
        assert call(uri) == expected
    assert paused == list(storage.RETRY_PAUSES_S) == sorted(paused)
    assert len(warnings) == 3
    assert all(uri in line and "\n" not in line for line in warnings)


def test_the_client_itself_tries_again_without_a_word(s3_port, folder, paused, monkeypatch):
    with proxy(s3_port, failures=1) as server:
        monkeypatch.setattr(storage, "_S3_ATTEMPTS", 2)
        storage.write_bytes(f"{folder}/x", b"data")
        assert server.requests == 2
    assert paused == []


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")])
def test_a_server_that_stays_out_of_order_is_one_line(s3_port, folder, paused, status, code):
    with (
        proxy(s3_port, failures=99, status=status, code=code) as server,
        pytest.raises(UserError, match=r"cannot reach s3://.*/x in 4 tries \(AWS Error"),
    ):
        storage.write_bytes(f"{folder}/x", b"data")
    assert server.requests == 4
    assert len(paused) == 3


def test_a_server_that_comes_back_is_found_again(s3_port, folder, monkeypatch):
    handler = type("Proxy", (Proxy,), {"behind": s3_port})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False) as server:
        server.server_bind()  # not listening: refuses
        started = []

        def come_back(seconds):
            started.append(seconds)
            server.server_activate()
            threading.Thread(target=server.serve_forever, daemon=True).start()

        monkeypatch.setattr(storage, "sleep", come_back)
        with connected_to(server.server_address[1]):
            storage.write_bytes(f"{folder}/x", b"data")
        server.shutdown()
    assert len(started) == 1
    assert storage.read_bytes(f"{folder}/x") == b"data"


def test_what_will_not_pass_is_one_line_at_once(s3_port, folder, paused):
    with pytest.raises(UserError, match=r"cannot write s3://no-such-bucket/x \(AWS Error NO_SUCH_BUCKET"):
        storage.write_bytes("s3://no-such-bucket/x", b"data")
    with pytest.raises(UserError, match=f"{folder}/missing does not exist"):
        storage.read_bytes(f"{folder}/missing")
    for call in (storage.read_bytes, storage.names, storage.exists, lambda uri: storage.write_bytes(uri, b"")):
        with (
            proxy(s3_port, failures=99, status=403, code="AccessDenied") as server,
            pytest.raises(UserError, match="AWS Error ACCESS_DENIED"),
        ):
            call(f"{folder}/x")
        assert server.requests == 1
    assert paused == []


def test_an_upload_that_breaks_off_leaves_the_old_file(s3_port, folder, paused):
    uri = f"{folder}/x"
    storage.write_bytes(uri, b"old")
    broken = {"refused": "partNumber=2", "status": 403, "code": "AccessDenied"}
    with proxy(s3_port, **broken), pytest.raises(UserError, match=r"cannot write .* \(AWS Error ACCESS_DENIED"):
        storage.write_bytes(uri, bytes(12 * 2**20))
    assert storage.read_bytes(uri) == b"old"


def test_shards_are_checked_again_when_a_server_was_out_of_order(s3_port, folder, paused):
    storage.write_bytes(
        f"{folder}/part", table_bytes(pa.table({"split": ["train"], "label": [0], "subject_id": ["a"]}))
    )
    manifest = Manifest(
        **{"kind": "latents", "shape": (1,), "classes": ("A",), "counts": {}, "mean": [], "std": []},
        **{"geometry": {}, "limits": {}, "shards": [{"file": "part", "rows": 1, "sha256": ""}]},
    )
    with proxy(s3_port, failures=2):
        assert len(read_index(folder, manifest, ())["train"]) == 1
    assert len(paused) == 2
    with proxy(s3_port, failures=99), pytest.raises(UserError, match=r"cannot reach .*/part in 4 tries"):
        read_index(folder, manifest, ())


def test_a_filesystem_that_travelled_to_a_worker_is_the_same(s3, folder):
    """Ray Data and Ray Train are given filesystems."""
    storage.write_bytes(f"{folder}/x", b"data")
    system, path = storage.filesystem(f"{folder}/x")
    assert pickle.loads(pickle.dumps(system)).get_file_info(path).type == fs.FileType.File


def test_google_does_not_try_for_minutes():
    system, path = storage.filesystem("gs://bucket/folder/file")
    assert path == "bucket/folder/file"
    _, (settings,) = system.__reduce__()
    assert settings["retry_time_limit"].total_seconds() < 60


def test_nothing_is_asked_of_amazon_where_an_endpoint_is_named(monkeypatch):
    monkeypatch.setattr(fs, "resolve_s3_region", None)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        with connected_to(silent.getsockname()[1]):
            storage.filesystem("s3://elsewhere/x")
