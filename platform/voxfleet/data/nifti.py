"""NIfTI files as bytes: read with one-line errors, written fast and the same on every run."""

import functools
import logging
import math

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from isal.igzip_lib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from voxfleet import storage
from voxfleet.errors import UserError

# nibabel prints what it thinks of a bad header; our error says it once
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)

_CONTAINERS = {
    b"PK": "a zip archive",
    b"BZh": "a file compressed by bzip2",
    b"\xfd7zXZ": "a file compressed by xz",
    b"\x28\xb5\x2f\xfd": "a file compressed by zstd",
    b"\x89HDF": "an HDF5 or MINC file",
    b"NRRD": "an NRRD file",
    **{b"x" + level: "a zlib stream without the header of gzip" for level in (b"\x01", b"\x9c", b"\xda")},
}
_MAX_QUATERNION = 1.001  # length of the three numbers; rounding lengthens them by 1e-6
_MAX_AXES = 7
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WBITS = 31  # a window of 32 KiB, and gzip's header
_INT16_MAX = 32767
DTYPES = ("int16", "float32")
_NOT_NIFTI: tuple[type[Exception], ...] = (  # type: ignore[assignment]  # isal's stub is wrong
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    IsalError,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)


def check_dtype(dtype: str) -> None:
    """Raises ValueError if volumes are not stored as ``dtype``."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")


def encode(data: np.ndarray, affine: np.ndarray, *, dtype: str = "int16", compress: bool = True) -> bytes:
    """A ``.nii.gz`` of a (D, H, W) volume, or a ``.nii``; the same input gives the same bytes.

    Floating-point data is stored as ``dtype``: int16 with a slope (``scl_slope``), at a precision of max|data| / 32767,
    or float32; integer data is stored as it is. Units are mm, and the affine is both the qform and the sform (scanner
    space).
    """
    slope = 1.0
    if np.issubdtype(data.dtype, np.floating):
        if dtype == "int16":
            slope = float(max(data.max(), -data.min())) / _INT16_MAX or 1.0
            data = np.rint(data / slope).astype(np.int16)
        else:
            data = data.astype(np.float32, copy=False)
    header = _header(data.shape, data.dtype.str, tuple((np.ravel(affine) + 0.0).tolist())).copy()
    header.set_slope_inter(slope, 0.0)
    # four bytes that say that there are no extensions; then the voxels, in Fortran's order
    plain = b"".join([header.binaryblock, bytes(4), data.tobytes(order="F")])
    return _gzip(plain) if compress else plain


def _gzip(plain: bytes) -> bytes:
    """``plain`` as a gzip file without time and name, whose bytes depend on nothing else.

    Where ISA-L's fast loop (igzip_icf_body_h1_gr_bt.asm, .write_first_byte) begins a stream, it stores the hash of a
    register that was never set and holds an address of the stack: one stack in a thousand or more gives other bytes.
    A first piece of at most 16 bytes, flushed, goes through the careful loop instead, and the stream has begun.
    """
    stream, first = isal_zlib.compressobj(level=1, wbits=_GZIP_WBITS), 16
    begun = stream.compress(plain[:first]), stream.flush(isal_zlib.Z_SYNC_FLUSH)
    return b"".join((*begun, stream.compress(memoryview(plain)[first:]), stream.flush()))


@functools.lru_cache
def _header(shape: tuple[int, ...], dtype: str, affine: tuple[float, ...]) -> nib.Nifti1Header:
    """The header of a single file, which takes longer to make than some volumes to compress."""
    image = nib.Nifti1Image(np.broadcast_to(np.zeros((), dtype), shape), np.reshape(affine, (4, 4)))
    header = image.header
    header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header


def read(uri: str) -> nib.Nifti1Image:
    """The NIfTI image at ``uri`` (NIfTI-1 or NIfTI-2 in one file), decompressed, its voxels not yet scaled.

    What FSL and ITK read is read: a quaternion that is a little too long, an axis beyond the third of length 0, an
    intercept that is not a number, a wrong ``vox_offset`` where the file's size says where the voxels are.

    Raises:
        UserError: if the file is missing, truncated or not such an image; says what it is where that can be seen.
    """
    data = storage.read_bytes(uri)
    try:
        while data[:2] == _GZIP_MAGIC:  # some tools compress twice
            data = igzip.decompress(data)
        _check_content(uri, data)
        image = _single_file(data)
        _ = image.dataobj[..., -1]  # touches the end of the data: a cut file fails here, not later
    except UserError as error:
        raise UserError(f"{uri}: {error}") from error
    except _NOT_NIFTI as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{uri} is truncated or not a NIfTI file ({reason}); replace the file") from error
    return image


def _check_content(uri: str, data: bytes) -> None:
    """Raises UserError if ``data`` is something known that is no NIfTI file; says what it is and what to do."""
    begin, name = data[:400], uri.lower().removesuffix(".gz")
    if not data:
        raise UserError("the file is empty; get it again")
    if begin.startswith(b"/annex/objects/") or b".git/annex/objects/" in begin:
        raise UserError(f"this is a pointer of git-annex, not the image; run: datalad get {uri}")
    if begin.startswith(b"version https://git-lfs"):
        raise UserError("this is a pointer of Git LFS, not the image; run: git lfs pull")
    if begin.lstrip()[:1] == b"<":
        raise UserError("this is a web page (or other XML), not the image; download the file again")
    if begin[128:132] == b"DICM":
        raise UserError("this is a DICOM file; convert the series to NIfTI, for instance with dcm2niix")
    if name.endswith((".img", ".hdr")) or begin[344:347] == b"ni1":
        raise UserError("this is one half of a pair .hdr/.img; run: nib-convert PAIR.img IMAGE.nii.gz")
    if name.endswith((".mgz", ".mgh")):
        raise UserError("this is a FreeSurfer image; run: nib-convert IMAGE.mgz IMAGE.nii.gz")
    if kind := next((kind for magic, kind in _CONTAINERS.items() if begin.startswith(magic)), None):
        raise UserError(f"this is {kind}, not a NIfTI file; unpack or convert it")


def _single_file(data: bytes) -> nib.Nifti1Image:
    """The image in ``data``, an uncompressed NIfTI-1 or NIfTI-2 file, after its header is mended."""
    is_second = 540 in (int.from_bytes(data[:4], order) for order in ("little", "big"))  # size of a NIfTI-2 header
    kind = nib.Nifti2Image if is_second else nib.Nifti1Image
    size = kind.header_class.template_dtype.itemsize
    header = kind.header_class(data[:size], check=False)
    _mend(header, len(data))
    if header.binaryblock != data[:size]:
        data = header.binaryblock + data[size:]
    return kind.from_bytes(data)


def _mend(header: nib.Nifti1Header, file_size: int) -> None:
    """Set what is wrong in ``header`` to what it must be, in place; UserError if that is not clear."""
    axes = int(header["dim"][0])
    lengths = header["dim"][1 : axes + 1]
    lengths[3:][lengths[3:] == 0] = 1
    if not 1 <= axes <= _MAX_AXES or min(lengths) < 1:
        raise HeaderDataError(f"{axes} axes of the lengths {lengths.tolist()}")
    if not np.isfinite(header["scl_inter"]):
        header["scl_inter"] = 0  # as nifti_clib, on which FSL and ITK build, reads it
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = math.hypot(*(float(header[name]) for name in names))
    if not header["sform_code"] and length > _MAX_QUATERNION:
        raise UserError(
            f"the quaternion of the qform has length {length:.6g}, which is no rotation; set the sform, or correct it"
        )
    if 1 < length <= _MAX_QUATERNION:  # rounding of the writer; the rotation is one by 180 degrees
        for name in names:
            header[name] = header[name] / length
    begin, first = float(header["vox_offset"]), header.single_vox_offset
    if not begin >= first:  # also where it is not a number
        voxels = math.prod(map(int, lengths)) * int(header["bitpix"]) // 8
        if file_size != first + voxels:
            raise UserError(
                f"the header says that the voxels begin at byte {begin:g}, within the header, and {file_size} bytes "
                f"are not a header of {first} and {voxels} of voxels; make the file again"
            )
        header["vox_offset"] = first
