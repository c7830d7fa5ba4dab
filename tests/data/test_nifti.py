"""NIfTI bytes: the same on every run, exact geometry, one-line errors."""

import bz2
import collections
import contextlib
import gzip
import lzma
import mmap
import re
import struct
import threading
import zlib

import nibabel as nib
import numpy as np
import pytest

from voxfleet import storage
from voxfleet.data import nifti
from voxfleet.errors import UserError

AFFINE = np.array([[-1.5, 0.2, 0.0, 70.0], [0.1, 0.0, 2.0, -90.5], [0.0, 1.8, 0.1, -60.25], [0.0, 0.0, 0.0, 1.0]])


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((9, 10, 11), dtype=np.float32)


def write_and_read(tmp_path, data: bytes, name: str = "x.nii.gz") -> nib.Nifti1Image:
    storage.write_bytes(str(tmp_path / name), data)
    return nifti.read(str(tmp_path / name))


def test_the_same_volume_gives_the_same_bytes():
    first = nifti.encode(volume(), AFFINE)
    assert nifti.encode(volume(), AFFINE) == first
    assert nifti.encode(volume(1), AFFINE) != first
    assert nifti.encode(volume(), np.where(AFFINE == 0, -0.0, AFFINE)) == first
    assert first[3] == 0  # no name among the gzip flags
    assert first[4:8] == bytes(4)  # no time


def test_the_bytes_do_not_depend_on_where_a_thread_has_its_stack():
    seen, page, size = collections.Counter(), mmap.PAGESIZE, 8 * 2**20
    gaps = np.random.default_rng(0).integers(1, 50, 8000).tolist()
    small = volume()[:2, :2, :2]
    with contextlib.ExitStack() as held:
        held.callback(threading.stack_size, threading.stack_size())
        for gap in gaps:  # what is held, and the growing size, keep each stack away from where another was
            size += page
            threading.stack_size(size)
            thread = threading.Thread(target=lambda: seen.update([nifti.encode(small, AFFINE)]))
            thread.start()
            thread.join()
            kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            held.enter_context(mmap.mmap(-1, size + gap * page, kind, mmap.PROT_READ))
    assert list(seen.values()) == [len(gaps)]


def test_floats_come_back_within_half_a_step_of_int16(tmp_path):
    data = volume() * 3 - 1
    image = write_and_read(tmp_path, nifti.encode(data, AFFINE))
    assert image.get_data_dtype() == np.int16
    step = np.abs(data).max() / 32767
    assert np.abs(image.get_fdata() - data).max() <= step * 0.51
    assert np.abs(image.get_fdata() - data).max() > step * 0.4  # the test above is not vacuous


def test_integers_and_zeros_come_back_exactly(tmp_path):
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    image = write_and_read(tmp_path, nifti.encode(labels, AFFINE))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.get_fdata(), labels)
    zeros = np.zeros((2, 3, 4), dtype=np.float32)
    np.testing.assert_array_equal(write_and_read(tmp_path, nifti.encode(zeros, AFFINE)).get_fdata(), zeros)


def test_affine_and_units_are_written_for_every_reader(tmp_path):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(nifti.encode(volume(), AFFINE))
    image = nib.load(path)  # nibabel's own reading of our file
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    # readers that prefer the qform see the same place; it holds no shear, so try one without
    plain = np.diag([-2.0, 2.0, 3.0, 1.0])
    plain[:3, 3] = 80, -100, -70
    path.write_bytes(nifti.encode(volume(), plain))
    np.testing.assert_allclose(nib.load(path).get_qform(), plain, atol=1e-5)


def test_read_takes_plain_and_compressed_files_of_others(tmp_path):
    for name in ("x.nii", "x.nii.gz"):
        nib.save(nib.Nifti1Image(volume(), AFFINE), tmp_path / name)
        image = nifti.read(str(tmp_path / name))
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), volume())
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


def test_read_goes_by_the_content_not_by_the_name(tmp_path):
    encoded = nifti.encode(volume(), AFFINE)
    assert write_and_read(tmp_path, encoded, "compressed.nii").shape == (9, 10, 11)
    assert write_and_read(tmp_path, gzip.decompress(encoded), "plain.nii.gz").shape == (9, 10, 11)


ENCODED = nifti.encode(volume(), AFFINE)
PLAIN = gzip.decompress(ENCODED)


def packed(place: int, form: str, *values, plain: bytes = PLAIN) -> bytes:
    """``plain`` with little-endian ``values`` at a byte of its header."""
    data = bytearray(plain)
    struct.pack_into(f"<{form}", data, place, *values)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(gzip.compress(b"text" * 400), id="gzip of text"),
        pytest.param(b"\x1f\x8b", id="gzip magic alone"),
        pytest.param(ENCODED[: len(ENCODED) // 2], id="half of a gzip"),
        pytest.param(ENCODED[:-4], id="gzip without its end"),
        pytest.param(ENCODED[:600] + bytes(50) + ENCODED[650:], id="gzip with damaged data"),
        pytest.param(ENCODED[:10] + bytes([ENCODED[10] ^ 0xFF]) + ENCODED[11:], id="gzip with a damaged code table"),
        pytest.param(PLAIN[:200], id="cut in the header"),
        pytest.param(PLAIN[:360], id="header alone"),
        pytest.param(PLAIN[:-1], id="last byte missing"),
        pytest.param(gzip.compress(PLAIN[:-300]), id="gzip of a cut file"),
        pytest.param(bytes(len(PLAIN)), id="zeros"),
        pytest.param(packed(40, "4h", 3, 9, 0, 11), id="an axis of length 0"),
        pytest.param(packed(40, "4h", 3, 9, -10, 11), id="an axis of negative length"),
        pytest.param(packed(40, "h", 9), id="nine axes"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, data):
    with pytest.raises(UserError) as error:
        write_and_read(tmp_path, data)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/x.nii.gz is truncated or not a NIfTI file (")
    assert message.endswith("replace the file")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (b"", "x.nii.gz", "the file is empty; get it again"),
        (gzip.compress(b""), "x.nii.gz", "the file is empty"),
        (b"<html>404 not found</html>" * 40, "x.nii.gz", "a web page (or other XML)"),
        (b'\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "x.nii.gz", "a web page (or other XML)"),
        (b"/annex/objects/MD5E-s9--01.nii.gz\n", "x.nii.gz", "run: datalad get {uri}"),
        (b"../../.git/annex/objects/Xx/9z/MD5E-s99--00.nii.gz", "x.nii.gz", "run: datalad get {uri}"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "x.nii.gz", "run: git lfs pull"),
        (bytes(128) + b"DICM" + bytes(400), "x.nii", "a DICOM file; convert the series"),
        (bytes(9000), "x.img", "one half of a pair .hdr/.img; run: nib-convert"),
        (PLAIN[:344] + b"ni1" + PLAIN[347:352], "x.nii", "one half of a pair"),
        (bytes(9000), "x.mgz", "a FreeSurfer image; run: nib-convert"),
        (b"PK\x03\x04" + bytes(500), "x.nii.gz", "a zip archive, not a NIfTI file"),
        (bz2.compress(PLAIN), "x.nii.bz2", "a file compressed by bzip2"),
        (lzma.compress(PLAIN), "x.nii.xz", "a file compressed by xz"),
        (zlib.compress(PLAIN, 1), "x.nii.gz", "a zlib stream without the header of gzip"),
        (zlib.compress(PLAIN), "x.nii.gz", "a zlib stream without the header of gzip"),
    ],
)
def test_what_is_no_nifti_file_is_named(tmp_path, data, name, said):
    uri = f"{tmp_path}/{name}"
    with pytest.raises(UserError, match=re.escape(said.format(uri=uri))) as error:
        write_and_read(tmp_path, data, name)
    assert str(error.value).startswith(f"{uri}: ")
    assert "\n" not in str(error.value)


# --- Headers that others have written


NIFTI_2 = nib.Nifti2Image(volume(), AFFINE)
NIFTI_2.set_qform(AFFINE, 1)
DIM, QFAC, VOX_OFFSET, SCL_INTER, QFORM_CODE, SFORM_CODE, QUATERN_B = 40, 76, 108, 116, 252, 254, 256


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PLAIN, id="plain"),
        *(pytest.param(packed(VOX_OFFSET, "f", at), id=f"offset {at}") for at in (0, 16, 348, -352, float("nan"))),
        pytest.param(gzip.compress(packed(VOX_OFFSET, "f", 0.0)), id="offset 0, compressed"),
        pytest.param(packed(DIM, "5h", 4, 9, 10, 11, 0), id="a fourth axis of length 0"),
        pytest.param(packed(DIM, "8h", 7, 9, 10, 11, 0, 1, 0, 0), id="axes of length 0"),
        pytest.param(packed(SCL_INTER, "f", float("nan")), id="intercept NaN"),
        pytest.param(packed(SCL_INTER, "f", float("inf")), id="intercept infinite"),
        pytest.param(gzip.compress(gzip.compress(PLAIN)), id="compressed twice"),
        pytest.param(nib.Nifti1Image(volume(), AFFINE).to_bytes(), id="of nibabel"),
        pytest.param(NIFTI_2.to_bytes(), id="NIfTI-2"),
        pytest.param(gzip.compress(NIFTI_2.to_bytes()), id="NIfTI-2, compressed"),
        pytest.param(packed(168, "q", 0, plain=NIFTI_2.to_bytes()), id="NIfTI-2, offset 0"),
        pytest.param(nib.Nifti2Image(volume(), AFFINE, NIFTI_2.header.as_byteswapped(">")).to_bytes(), id="big-endian"),
    ],
)
def test_a_header_of_another_program_shows_the_same_image(tmp_path, data):
    image = write_and_read(tmp_path, data, "x.nii")
    assert image.shape[:3] == (9, 10, 11)
    np.testing.assert_allclose(image.get_fdata().reshape(9, 10, 11), volume(), atol=2e-5)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


def half_turn(excess: float) -> bytes:
    """With a qform alone, by 180 degrees about z, whose quaternion is longer than 1."""
    data = packed(QFAC, "f", 1.0, plain=packed(QFORM_CODE, "hh", 1, 0))
    return packed(QUATERN_B, "3f", 0.0, 0.0, 1 + excess, plain=data)


@pytest.mark.parametrize("excess", [0.0, 3e-7, 1e-5, 5e-4])
def test_a_quaternion_that_is_a_little_too_long_is_a_rotation(tmp_path, excess):
    affine = write_and_read(tmp_path, half_turn(excess)).affine
    np.testing.assert_allclose(affine[:3, :3] / nib.affines.voxel_sizes(affine), np.diag([-1, -1, 1]), atol=1e-3)


def test_a_quaternion_that_is_no_rotation_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"x\.nii\.gz: the quaternion of the qform has length 1\.1, which is no rotation"
    ):
        write_and_read(tmp_path, half_turn(0.1))


@pytest.mark.parametrize("data", [PLAIN + bytes(512), PLAIN[:-1]], ids=["more bytes", "fewer bytes"])
def test_an_offset_within_the_header_is_refused_where_the_size_does_not_say_more(tmp_path, data):
    with pytest.raises(UserError, match="the voxels begin at byte 0, within the header") as error:
        write_and_read(tmp_path, packed(VOX_OFFSET, "f", 0.0, plain=data))
    assert str(error.value).endswith("make the file again")


def test_an_offset_beyond_an_extension_is_where_it_says(tmp_path):
    image = nib.Nifti1Image(volume(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    np.testing.assert_array_equal(write_and_read(tmp_path, image.to_bytes()).get_fdata(dtype=np.float32), volume())


def test_a_missing_file_is_one_line_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.nii\.gz does not exist; check the path$"):
        nifti.read(str(tmp_path / "nothing.nii.gz"))
