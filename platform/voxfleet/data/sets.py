"""Sets of volumes that are compared: volume shards, and datasets of images as generate and decode write them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from voxfleet import storage
from voxfleet.data import nifti
from voxfleet.data.index import Index, read_index
from voxfleet.data.shards import MANIFEST, read_manifest, read_shard
from voxfleet.data.synthetic import MANIFEST as IMAGES
from voxfleet.errors import UserError


@dataclass(frozen=True)
class VolumeSet:
    """The volumes in one folder.

    Attributes:
        folder: of the set.
        digest: changes with its content.
        classes: class names.
        names: of each volume, for the reader, (n,).
        subjects: of each volume, (n,).
        labels: index into ``classes`` of each volume, (n,).
        splits: of each volume, (n,); "synthetic" for what a model made.
        contents: of each volume, (n,), no two alike: hash and name of its image, or digest of its shards and its row.
        parts: where the volumes stand, in their order: shards by their index, or URIs of images.
        affine: voxel to RAS mm, (4, 4), of shards; each image has its own.
        mirror_axis: along which a mirrored volume is one of the same class, else None.
        mirrored: whether volumes are read mirrored along it.
    """

    folder: str
    digest: str
    classes: tuple[str, ...]
    names: np.ndarray
    subjects: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    contents: np.ndarray
    parts: Sequence[Index] | np.ndarray
    affine: np.ndarray | None
    mirror_axis: int | None = None
    mirrored: bool = False

    @property
    def mirror_images(self) -> "VolumeSet":
        """The mirror images of these volumes, in their order."""
        return dataclasses.replace(self, mirrored=True, contents=np.char.add(self.contents, " mirrored"))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The volumes (D, H, W) float32 of ``rows``, and their affines (4, 4).

        Raises:
            UserError: if one cannot be read.
        """
        if self.affine is None:
            images = [nifti.read(uri) for uri in np.asarray(self.parts)[rows]]
            return [image.get_fdata(dtype=np.float32) for image in images], [image.affine for image in images]
        ends = np.cumsum([0, *map(len, self.parts)])
        found: dict[int, np.ndarray] = {}
        for begin, index in zip(ends, self.parts, strict=False):
            mine = rows[(rows >= begin) & (rows < begin + len(index))]
            if len(mine):
                found |= dict(zip(mine.tolist(), index.read(mine - begin, ("volume",))["volume"], strict=True))
        if self.mirrored:
            found = {row: np.flip(volume, self.mirror_axis) for row, volume in found.items()}
        return [found[row].astype(np.float32, copy=False) for row in rows.tolist()], [self.affine] * len(rows)


def open_set(folder: str) -> VolumeSet:
    """The set of volumes in ``folder``: what prepare, generate or decode made there.

    Raises:
        UserError: if there is none.
    """
    if storage.exists(storage.join(folder, MANIFEST)):
        return _of_shards(folder)
    if storage.exists(storage.join(folder, IMAGES)):
        return _of_images(folder)
    raise UserError(
        f"{folder} holds no finished set of volumes (no {MANIFEST} of prepare, no {IMAGES} of generate or decode); "
        "check the path, or run the job that makes it"
    )


def _of_shards(folder: str) -> VolumeSet:
    manifest = read_manifest(folder, "volumes")
    index = read_index(folder, manifest, ("volume",))
    subjects = np.concatenate([part.subjects for part in index.values()])
    return VolumeSet(
        folder=folder,
        digest=manifest.digest,
        classes=manifest.classes,
        names=subjects,
        subjects=subjects,
        labels=np.concatenate([part.labels for part in index.values()]),
        splits=np.concatenate([np.full(len(part), name) for name, part in index.items()]),
        contents=np.array([f"{manifest.digest}/{row}" for row in range(len(subjects))]),
        parts=tuple(index.values()),
        affine=np.array(manifest.geometry["affine"]),
        mirror_axis=manifest.geometry.get("mirror_axis"),
    )


def _of_images(folder: str) -> VolumeSet:
    uri = storage.join(folder, IMAGES)
    table = read_shard(uri)
    if not table.num_rows or ("file" in table.column_names and not all(table["file"].to_pylist())):
        raise UserError(f"{folder} lists no images; decode its latents first, or generate with --save.volumes true")
    name = "sample_id" if "sample_id" in table.column_names else "subject_id"
    for column in (name, "class", "file", "sha256"):
        there = column in table.column_names and pa.types.is_string(table[column].type)
        if not there or table[column].null_count:
            raise UserError(f"{uri} has no {column} in each row; make the set again with the job that wrote it")
    listed = table.select([name, "class", "file", "sha256"]).to_pylist()
    classes = tuple(dict.fromkeys(row["class"] for row in listed))
    names = [row[name] for row in listed]
    return VolumeSet(
        folder=folder,
        digest=hashlib.sha256("".join(row["sha256"] for row in listed).encode()).hexdigest()[:16],
        classes=classes,
        names=np.array(names),
        subjects=np.array(names),
        labels=np.array([classes.index(row["class"]) for row in listed]),
        splits=np.full(len(listed), "synthetic"),
        contents=np.array([f"{row['sha256']} {row['file']}" for row in listed]),
        parts=np.array([storage.join(folder, row["file"]) for row in listed]),
        affine=None,
    )
