"""Files are whole or absent, and paths stay what they are."""

import errno
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from voxfleet import storage
from voxfleet.errors import UserError


def one_line(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_write_makes_the_folder_replaces_the_file_and_leaves_nothing_else(tmp_path):
    uri = str(tmp_path / "a" / "b" / "file.bin")
    for data in (b"first, and longer", b"second"):
        assert storage.write_bytes(uri, data) == hashlib.sha256(data).hexdigest()
        assert storage.read_bytes(uri) == data
    assert os.listdir(tmp_path / "a" / "b") == ["file.bin"]


def test_a_reader_keeps_the_old_file_whole_while_it_is_replaced(tmp_path):
    path = tmp_path / "file"
    storage.write_bytes(str(path), b"old")
    with path.open("rb") as reader:
        storage.write_bytes(str(path), b"new")
        assert reader.read() == b"old"  # a new file took the name: the bytes under the reader were not touched


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(uri, "not bytes")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["file"]
    assert storage.read_bytes(uri) == b"old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder"):
        storage.write_bytes(str(tmp_path / "folder"), b"data")  # the rename fails
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file_alone(tmp_path):
    """A process of its own, whose files cannot grow beyond 64 KiB: a write fails when part of it is on the disk."""
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    code = """
import resource, sys
from voxfleet import storage
from voxfleet.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    storage.write_bytes(sys.argv[1], bytes(2**17))
except UserError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
    assert result.stdout == f"cannot write {uri} (File too large); check the path, its rights and the space\n"
    assert os.listdir(tmp_path) == ["file"]
    assert storage.read_bytes(uri) == b"old"


def test_size_of_a_file_and_of_what_is_none(tmp_path):
    storage.write_bytes(str(tmp_path / "file"), b"12345")
    assert storage.size(str(tmp_path / "file")) == 5
    assert "is not a file" in one_line(storage.size, str(tmp_path))
    assert "does not exist" in one_line(storage.size, str(tmp_path / "other"))


def test_remove_takes_files_and_folders_and_does_not_mind_what_is_missing(tmp_path):
    for name in ("a/b/file", "a/c", "d"):
        storage.write_bytes(str(tmp_path / name), b"")
    storage.remove(str(tmp_path / "d"))
    storage.remove(str(tmp_path / "a" / "b"))
    storage.remove(str(tmp_path / "e"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "a/c"]


def test_names_are_sorted_and_hide_what_a_killed_writer_left(tmp_path):
    for name in ("b", "a", f".c.123{storage.TEMPORARY_SUFFIX}"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "deeper").touch()
    assert storage.names(str(tmp_path)) == ["a", "b", "folder"]
    assert storage.names(str(tmp_path / "nowhere")) == []


def test_names_hide_the_temporary_of_a_write_in_progress(tmp_path, monkeypatch):
    seen = []
    replace = Path.replace

    def look_then_replace(self, target):
        seen.append((os.listdir(tmp_path), storage.names(str(tmp_path))))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look_then_replace)
    storage.write_bytes(str(tmp_path / "file"), b"data")
    [(on_disk, listed)] = seen
    assert len(on_disk) == 1
    assert listed == []


def test_names_hold_links_that_point_to_nothing_and_names_that_are_not_utf8(tmp_path):
    (tmp_path / "image.nii.gz").symlink_to("../.git/annex/objects/Xx/9z/MD5E-s9--0.nii.gz")
    (tmp_path / "folder").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.txt")).touch()
    assert storage.names(str(tmp_path)) == ["M\udcfcller.txt", "folder", "image.nii.gz"]
    assert storage.names(str(tmp_path / "folder")) == []
    assert [storage.is_broken_link(str(tmp_path / name)) for name in ("image.nii.gz", "folder", "none")] == [1, 1, 0]
    assert not storage.is_broken_link(str(tmp_path))
    message = one_line(storage.read_bytes, str(tmp_path / "image.nii.gz"))
    assert message.endswith(f"if git-annex or DataLad keeps it, run: datalad get {tmp_path}/image.nii.gz")
    assert "is a link to ../.git/annex/objects/Xx/9z/MD5E-s9--0.nii.gz, which is not there" in message
    message = one_line(storage.read_bytes, str(tmp_path / "folder" / "anat" / "image.nii.gz"))
    assert message.startswith(f"{tmp_path}/folder is a link to nowhere, which is not there")


@pytest.mark.parametrize(
    "call", [storage.absolute, storage.exists, storage.names, storage.read_bytes, storage.filesystem]
)
def test_an_empty_path_is_refused_wherever_it_is_used(call):
    assert one_line(call, "").startswith("a path is empty (from a variable that is not set?)")


def test_nothing_is_joined_to_an_empty_path():
    assert one_line(storage.join, "", "manifest.json").startswith("a path is empty")
    assert one_line(storage.write_bytes, "", b"data").startswith("a path is empty")


def test_a_path_that_is_not_utf8_is_one_line(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller")
    message = one_line(storage.write_bytes, path, b"data")
    assert "M\\udcfcller' is not UTF-8" in message
    message.encode()  # can be printed
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_one_line_before_anything_is_made(tmp_path):
    (tmp_path / "file").touch()
    message = one_line(storage.check_writable, str(tmp_path / "file" / "out" / "deeper"))
    assert f"({tmp_path}/file is not a folder)" in message
    storage.check_writable(str(tmp_path / "out" / "deeper"))
    storage.check_writable("s3://bucket/out")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_without_rights_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # rights do not bind root
    assert f"(no right to write in {tmp_path})" in one_line(storage.check_writable, str(tmp_path / "out"))


def test_join_uses_single_slashes():
    assert storage.join("a/", "/b/", "c") == "a/b/c"
    assert storage.join("s3://bucket/", "x", "y.json") == "s3://bucket/x/y.json"
    assert storage.join("/", "a") == "/a"


def test_absolute_leaves_uris_and_completes_local_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("a/../b") == f"{tmp_path}/b"
    assert storage.absolute("~/data") == "/home/someone/data"
    assert storage.absolute("/data/") == "/data"
    assert storage.absolute("s3://bucket/folder/") == "s3://bucket/folder"
    assert storage.is_local("C/data")
    assert not storage.is_local("gs://bucket")


def test_exists_for_files_and_folders(tmp_path):
    storage.write_bytes(str(tmp_path / "file"), b"")
    assert storage.exists(str(tmp_path))
    assert storage.exists(str(tmp_path / "file"))
    assert not storage.exists(str(tmp_path / "other"))


def test_a_missing_file_and_an_unknown_scheme_are_one_line(tmp_path):
    missing = str(tmp_path / "missing")
    assert f"{missing} does not exist" in one_line(storage.read_bytes, missing)
    assert "cannot open nonsense://bucket" in one_line(storage.read_bytes, "nonsense://bucket/file")


def test_compressed_files_are_read_as_they_are(tmp_path):
    # pyarrow decompresses by file name when it is let
    storage.write_bytes(str(tmp_path / "x.gz"), b"\x1f\x8bnot really")
    assert storage.read_bytes(str(tmp_path / "x.gz")) == b"\x1f\x8bnot really"


def test_json_round_trip_and_one_line_for_what_is_not_json(tmp_path):
    uri = str(tmp_path / "d.json")
    document = {"a": [1, 2.5, None], "b": {"c": "text"}}
    assert storage.write_json(uri, document) == hashlib.sha256(storage.read_bytes(uri)).hexdigest()
    assert storage.read_json(uri) == document
    for data in (b'{"a": 1', b'{"a": "\xff"}', b"1" * 5000, b"[" * 100_000):
        storage.write_bytes(uri, data)
        assert re.search(r"d\.json is not valid JSON", one_line(storage.read_json, uri))


def test_half_written_files_that_nobody_writes_any_more_are_removed(tmp_path):
    old, new, whole = tmp_path / ".a.pt.1.tmp", tmp_path / ".b.pt.2.tmp", tmp_path / "c.pt"
    for path in (old, new, whole):
        path.write_text("x")
    for path in (old, whole):
        os.utime(path, (0, 0))
    storage.remove_unfinished(str(tmp_path), 60.0)
    assert sorted(tmp_path.iterdir()) == [new, whole]
    storage.remove_unfinished(str(tmp_path / "missing"), 60.0)


HOLD = """import sys
from voxfleet import storage
with storage.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_of_one_process_and_ends_with_its_death(tmp_path):
    uri = str(tmp_path / "a" / "b" / "lock")
    command = [sys.executable, "-c", HOLD, uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), storage.locked(uri):
            pass
        holder.kill()
        holder.wait()
        with storage.locked(uri):
            pass


def test_a_lock_leaves_no_folder_unless_something_came_of_it(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("", "job.json"):
        with storage.locked(str(tmp_path / "mine" / "out" / ".voxfleet" / "lock")):
            if name:
                storage.write_bytes(str(tmp_path / "mine" / "out" / ".voxfleet" / name), b"{}")
        assert (tmp_path / "mine" / "out").exists() == bool(name)
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_worked_on(tmp_path, monkeypatch, caplog, code):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.fcntl, "flock", refuse)
    with caplog.at_level("WARNING"), storage.locked(str(tmp_path / "out" / "lock")):
        (tmp_path / "out" / "result").touch()
    assert f"{tmp_path}/out: this file system has no locks" in caplog.text
    assert (tmp_path / "out" / "result").exists()


def test_a_lock_that_cannot_be_taken_or_made_is_one_line(tmp_path, monkeypatch):
    def hold(uri):
        with storage.locked(uri):
            pytest.fail("it is not held")

    (tmp_path / "file").touch()
    assert f"cannot write {tmp_path}/file/lock (" in one_line(hold, str(tmp_path / "file" / "lock"))
    (tmp_path / "out" / "lock").mkdir(parents=True)  # opening it fails, as another user's file does
    assert f"cannot write {tmp_path}/out/lock (Is a directory)" in one_line(hold, str(tmp_path / "out" / "lock"))

    def refuse(file, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(storage.fcntl, "flock", refuse)
    assert f"cannot lock {tmp_path}/lock (Input/output error)" in one_line(hold, str(tmp_path / "lock"))


def test_a_remote_lock_holds_nothing():
    with storage.locked("s3://bucket/out/lock"):
        pass


def test_relative_paths_begin_at_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv(storage.ROOT, str(tmp_path))
    assert storage.absolute("a/../b") == f"{tmp_path}/b"
    storage.write_bytes("b/file", b"1")
    assert (tmp_path / "b" / "file").read_bytes() == b"1"
    assert storage.absolute("/elsewhere") == "/elsewhere"
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert storage.absolute("x", str(tmp_path / "start")) == f"{tmp_path}/start/x"
    monkeypatch.setenv(storage.ROOT, "s3://bucket/me")
    assert storage.absolute("a/../b") == "s3://bucket/me/b"
    assert not storage.is_local("b")
    assert storage.absolute("x", "tables") == "s3://bucket/me/tables/x"
    assert storage.is_local("/elsewhere")


def test_a_relative_path_in_the_folder_of_a_submitted_job_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv(storage.ROOT, raising=False)
    with pytest.raises(UserError, match="out/here is a relative path"):
        storage.write_bytes("out/here", b"1")
    assert storage.absolute("/full") == "/full"
    monkeypatch.setenv(storage.ROOT, str(tmp_path))
    assert storage.absolute("out") == f"{tmp_path}/out"


@pytest.mark.parametrize("name", ["../x", "a/../../x", ".."])
def test_a_name_that_leads_out_of_its_folder_is_refused(name):
    with pytest.raises(UserError, match="leads out of work"):
        storage.join("work", "part", name)
    assert storage.join("work", "/etc/..x", "a..b") == "work/etc/..x/a..b"
