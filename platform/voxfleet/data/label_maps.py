"""Label maps of volumes: where they are, and what share of each voxel of another grid their labels fill."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from voxfleet import storage
from voxfleet.data.sources import read_table
from voxfleet.errors import UserError

_DSEG = re.compile(r"_dseg\.nii(\.gz)?$")
_FINER = 3  # points along each axis of a voxel
_THREADS = 16


def find_label_maps(where: str, subjects: Iterable[str]) -> dict[str, str]:
    """The URI of the label map of each of ``subjects`` that has one.

    Args:
        where: a BIDS derivative dataset, which holds one ``sub-*_dseg.nii.gz`` a subject, or a CSV or TSV with the
            columns subject_id and path.
        subjects: their ids; samples of a campaign are named as their manifest does, or as BIDS.

    Raises:
        UserError: if there is no such place, none of the subjects has a map, or one has several.
    """
    where, wanted = storage.absolute(where), sorted(set(subjects))
    if not storage.exists(where):
        raise UserError(f"{where}, where label maps should be, does not exist; check the path")
    if where.endswith((".csv", ".tsv")):
        rows = read_table(where, ("subject_id", "path"), "add it")
        listed = {row["subject_id"]: storage.absolute(row["path"], where.rpartition("/")[0]) for _, row in rows}
        found = {subject: listed[subject] for subject in wanted if subject in listed}
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            maps = pool.map(lambda subject: _in_dataset(where, subject), wanted)
        found = {subject: uri for subject, uri in zip(wanted, maps, strict=True) if uri}
    if not found:
        raise UserError(
            f"{where} has no label map of any of the {len(wanted)} subjects, such as {wanted[0]}; it must be a BIDS "
            "derivative dataset with files sub-*_dseg.nii.gz, or a table with the columns subject_id and path"
        )
    return found


def label_map_digests(maps: Mapping[str, str]) -> dict[str, str]:
    """sha256 of the label map of each subject."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(maps, pool.map(_sha256, maps.values()), strict=True))


def _sha256(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def _in_dataset(root: str, subject: str) -> str | None:
    name = subject if subject.startswith("sub-") else f"sub-{subject.replace('-', '')}"
    folder = storage.join(root, name)
    levels = [level for level in storage.names(folder) if level == "anat" or level.startswith("ses-")]
    anats = [storage.join(folder, level, *(["anat"] if level != "anat" else [])) for level in levels]
    maps = [storage.join(anat, file) for anat in anats for file in storage.names(anat) if _DSEG.search(file)]
    if len(maps) > 1:
        raise UserError(f"{folder} holds {len(maps)} label maps ({maps[0]}, ...); list one of each subject in a table")
    return maps[0] if maps else None


def filled(image: nib.Nifti1Image, values: Sequence[int], affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The share of each voxel of a grid that each label fills, (labels, D, H, W) float32.

    Args:
        image: the label map.
        values: of the labels.
        affine: of the grid, (4, 4), voxel to mm.
        shape: of the grid, (D, H, W).

    Raises:
        UserError: if the image is no 3-D map.
    """
    labels = labels_of(image)
    fine = affine @ np.diag([*[1 / _FINER] * 3, 1.0])
    fine[:3, 3] = affine[:3, 3] - affine[:3, :3] @ np.full(3, (_FINER - 1) / (2 * _FINER))
    matrix = np.linalg.inv(image.affine) @ fine
    blocks = [part for edge in shape for part in (edge, _FINER)]
    shares = []
    for value in values:
        points = ndimage.affine_transform(
            (labels == value).astype(np.float32),
            matrix[:3, :3],
            matrix[:3, 3],
            output_shape=tuple(edge * _FINER for edge in shape),
            order=1,
        )
        shares.append(points.reshape(blocks).mean(axis=(1, 3, 5)))
    return np.stack(shares)


def label_volumes(image: nib.Nifti1Image, values: Sequence[int]) -> list[float]:
    """Volume of each label in ml.

    Raises:
        UserError: if the image is no 3-D map.
    """
    voxel_ml = float(np.prod(voxel_sizes(image.affine))) / 1000
    labels = labels_of(image)
    return [float(np.count_nonzero(labels == value)) * voxel_ml for value in values]


def labels_of(image: nib.Nifti1Image) -> np.ndarray:
    """The labels (D, H, W) of a map, as whole numbers.

    Raises:
        UserError: if it is no 3-D map.
    """
    if len(image.shape) != 3:
        raise UserError(f"a label map has shape {image.shape}; give 3-D maps")
    return np.rint(image.get_fdata(dtype=np.float32)).astype(np.int64)
