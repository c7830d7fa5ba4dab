"""NIfTI files as bytes: read with one-line errors, written fast and the same on every run."""

import functools
import logging

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
    """The NIfTI image at ``uri`` (``.nii`` or ``.nii.gz``), decompressed, its voxels not yet scaled.

    Raises:
        UserError: if the file is missing, truncated or not NIfTI.
    """
    data = storage.read_bytes(uri)
    try:
        if data[:2] == _GZIP_MAGIC:
            data = igzip.decompress(data)
        image = nib.Nifti1Image.from_bytes(data)
        _ = image.dataobj[..., -1]  # touches the end of the data: a cut file fails here, not later
    except _NOT_NIFTI as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{uri} is truncated or not a NIfTI file ({reason}); replace the file") from error
    return image
