"""NIfTI bytes: the same on every run, exact geometry, one-line errors."""

import collections
import contextlib
import gzip
import mmap
import threading

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


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>404 not found</html>" * 40, id="web page"),
        pytest.param(gzip.compress(b"text" * 400), id="gzip of text"),
        pytest.param(gzip.compress(b""), id="gzip of nothing"),
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
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, data):
    with pytest.raises(UserError) as error:
        write_and_read(tmp_path, data)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/x.nii.gz is truncated or not a NIfTI file (")
    assert message.endswith("replace the file")
    assert "\n" not in message


def test_a_missing_file_is_one_line_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.nii\.gz does not exist; check the path$"):
        nifti.read(str(tmp_path / "nothing.nii.gz"))
