"""Measuring the volumes of an evaluation: figures and features of each, in pieces that are done once.

Letters: n volumes, D/H/W voxels, P planes, S slices of a plane, F features.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from voxfleet import storage
from voxfleet.data import nifti
from voxfleet.data.label_maps import label_volumes
from voxfleet.data.quality import volume_checks
from voxfleet.data.sets import VolumeSet
from voxfleet.data.shards import read_shard, table_bytes, tensors
from voxfleet.engine.output import digest
from voxfleet.engine.units import Rows
from voxfleet.errors import UserError
from voxfleet.metrics import anatomy
from voxfleet.models.slice_features import SliceNetwork, efficientnet_lite0, scripted
from voxfleet.packages import load_autoencoder, load_classifier, load_segmenter

PLANES = ("sagittal", "coronal", "axial")  # across the axes of a volume in RAS
EFFICIENTNET, INCEPTION, AUTOENCODER = "EfficientNet-Lite0", "Inception", "autoencoder"
CLASSIFIER = "classifier"
MEASURES = ".voxfleet/measures"
AT_ONCE = 16  # volumes of a unit
_SMALL_VOXELS = 1 << 15  # of a volume that is kept in memory
_LATENT_VALUES = 1 << 13
_SLICES = 24_000  # of all volumes: some minutes of two cores


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How volumes are measured.

    Attributes:
        folder: of the evaluation.
        basis: digest of what figures follow from beside the volumes (see ``units``).
        shape: of every volume.
        affine: of the real volumes, (4, 4).
        positions: of the slices along each axis.
        autoencoder: its package.
        slice_networks: names of those that are used.
        inception: TorchScript file of the Inception, if used.
        classifier: package of a classifier, if used.
        segmenter: package of a segmenter, if used.
        label_maps: of the subjects of each set, by its name, where hippocampi are measured by these.
        label_values: of the left and the right hippocampus in them.
        threads: of a worker.
        device: cpu or cuda.
    """

    folder: str
    basis: str
    shape: tuple[int, ...]
    affine: np.ndarray
    positions: tuple[tuple[int, ...], ...]
    autoencoder: str
    slice_networks: tuple[str, ...]
    inception: str | None
    classifier: str | None
    segmenter: str | None
    label_maps: Mapping[str, Mapping[str, str]]
    label_values: tuple[int, int]
    threads: int
    device: str

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Edges of a voxel."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())


def slice_positions(shape: Sequence[int], volumes: int, wanted: int | None) -> tuple[tuple[int, ...], ...]:
    """Places along each axis, at even steps over its middle half: ``wanted``, or as many as all ``volumes`` allow."""
    number = wanted or max(1, min(8, _SLICES // (len(shape) * volumes)))
    return tuple(
        tuple(np.linspace(0.25 * edge, 0.75 * edge - 1, number).round().astype(int).tolist()) for edge in shape
    )


def units(volumes: VolumeSet, basis: str, maps: Mapping[str, str] | None = None) -> dict[str, list[int]]:
    """The pieces of work: the rows of a few volumes each, by a digest of all that their figures follow from.

    Samples stand class by class, and a piece holds one class, so that those of a campaign that grew are the same ones.

    Args:
        volumes: to be measured.
        basis: digest of the networks, the grid, the slices and the label values.
        maps: hash of the label map of each subject, where these are used.
    """
    ends = np.flatnonzero(np.diff(volumes.labels)) + 1
    runs = np.split(np.arange(len(volumes)), ends if len(ends) < len(volumes.classes) else [])
    pieces = [run[start : start + AT_ONCE].tolist() for run in runs for start in range(0, len(run), AT_ONCE)]
    return {digest([basis, *(_identity(volumes, row, maps or {}) for row in rows)]): rows for rows in pieces}


def _identity(volumes: VolumeSet, row: int, maps: Mapping[str, str]) -> list[str | None]:
    return [str(volumes.names[row]), str(volumes.contents[row]), maps.get(str(volumes.subjects[row]))]


class Measurer:
    """An actor that measures a few volumes at a time."""

    def __init__(self, measuring: Measuring, sets: Mapping[str, VolumeSet]) -> None:
        torch.set_num_threads(measuring.threads)
        self._measuring, self._sets = measuring, sets
        self._autoencoder = load_autoencoder(measuring.autoencoder, measuring.device)
        self._classifier = measuring.classifier and load_classifier(measuring.classifier, measuring.device)
        self._segmenter = measuring.segmenter and load_segmenter(measuring.segmenter, measuring.device)
        self._slice_networks = {name: self._slice_network(name) for name in measuring.slice_networks}

    def _slice_network(self, name: str) -> SliceNetwork:
        if name == EFFICIENTNET:
            return efficientnet_lite0(self._measuring.device)
        assert self._measuring.inception
        try:
            return scripted(storage.read_bytes(self._measuring.inception), self._measuring.device)
        except ValueError as error:
            raise UserError(f"features.inception {self._measuring.inception}: {error}") from error

    def __call__(self, unit: str, content: tuple[str, list[int]]) -> Rows:
        """Measure the volumes of a set in these rows; the file that holds what was found."""
        name, rows = content
        volumes, affines = self._sets[name].read(np.array(rows))
        for row, volume in zip(rows, volumes, strict=True):
            if volume.shape != self._measuring.shape:
                where = f"{self._sets[name].folder}: {self._sets[name].names[row]}"
                raise UserError(
                    f"{where} has shape {volume.shape}, the real volumes {self._measuring.shape}; compare sets of one "
                    "grid"
                )
        columns: dict[str, Any] = {"offset_mm": [_offset_mm(a, self._measuring) for a in affines]}
        checks = [volume_checks(volume, self._measuring.spacing_mm) for volume in volumes]
        clean = [np.nan_to_num(volume, nan=0, posinf=0, neginf=0) for volume in volumes]
        found = [{**check, **self._anatomy(volume)} for check, volume in zip(checks, clean, strict=True)]
        columns |= {key: [values[key] for values in found] for key in found[0]}
        batch = torch.from_numpy(np.stack(clean)).to(self._measuring.device)
        columns |= anatomy.hippocampal_figures(self._hippocampi(name, rows, batch))
        arrays = {"small": pooled(batch[:, None], _SMALL_VOXELS).to(torch.float16), "latent": self._latents(batch)}
        arrays |= {f"slices {name}": self._of_slices(network, batch) for name, network in self._slice_networks.items()}
        spectra = np.stack([anatomy.power_spectrum(volume, self._measuring.spacing_mm)[1] for volume in clean])
        arrays["spectrum"] = torch.from_numpy(spectra)
        if self._classifier:
            arrays["probabilities"] = self._classifier.predict(batch[:, None])
            arrays["classifier"] = self._classifier.features(batch[:, None])
        for key, values in arrays.items():
            columns[key] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values.cpu().numpy()))
        file = f"{MEASURES}/{unit}.parquet"
        storage.write_bytes(storage.join(self._measuring.folder, file), table_bytes(pa.table(columns)))
        return [{"set": name, "file": file}]

    def _anatomy(self, volume: np.ndarray) -> dict[str, float]:
        """NaN where no brain of three tissues is found."""
        try:
            return anatomy.measures(volume, self._measuring.spacing_mm)
        except ValueError:
            return dict.fromkeys(anatomy.MEASURES, math.nan)

    def _hippocampi(self, name: str, rows: list[int], batch: torch.Tensor) -> np.ndarray:
        """Volumes of the left and the right one (ml), (n, 2); NaN where they are not known."""
        if self._segmenter:
            return self._segmenter.volumes_ml(batch[:, None]).cpu().numpy()
        maps = self._measuring.label_maps.get(name, {})
        uris = [maps.get(str(subject)) for subject in self._sets[name].subjects[rows]]
        values = self._measuring.label_values
        return np.array([label_volumes(nifti.read(uri), values) if uri else [math.nan] * 2 for uri in uris])

    def _latents(self, batch: torch.Tensor) -> torch.Tensor:
        """(n, values) float32: the means of the volumes' latents, pooled where they are large."""
        parts = [self._autoencoder.encode(part)[0] for part in batch[:, None].split(4)]
        return pooled(torch.cat(parts), _LATENT_VALUES).flatten(1).float()

    def _of_slices(self, network: SliceNetwork, batch: torch.Tensor) -> torch.Tensor:
        """(n, P, S, F) float32."""
        planes = []
        for axis, positions in enumerate(self._measuring.positions):
            slices = batch.movedim(axis + 1, 1)[:, list(positions)]  # (n, S, ., .)
            planes.append(network(slices.flatten(0, 1)).unflatten(0, slices.shape[:2]))
        return torch.stack(planes, dim=1)


def pooled(x: torch.Tensor, most: int) -> torch.Tensor:
    """``x`` (n, C, D, H, W), or its means over cubes so large that an element has at most ``most`` values."""
    factor = 1
    while x[0].numel() / factor**3 > most:
        factor += 1
    return functional.avg_pool3d(x, factor, ceil_mode=True) if factor > 1 else x


def _offset_mm(affine: np.ndarray, measuring: Measuring) -> float:
    """How far the farthest corner of a volume lies from where that of a real one does, in mm."""
    corners = np.array(np.meshgrid(*[(0, edge - 1) for edge in measuring.shape])).reshape(3, -1)
    shift = (affine - measuring.affine)[:3]
    return float(np.linalg.norm(shift[:, :3] @ corners + shift[:, 3:], axis=0).max())


@dataclass(frozen=True)
class Measured:
    """What was found of the volumes of a set; all arrays (n, ...).

    Attributes:
        volumes: the set.
        scalars: figures, by their names.
        small: (n, d, h, w) float16, the volumes at a lower resolution.
        spectra: (n, bins), power by frequency.
        features: (n, S, F) float32, by name and plane; S is 1 for features of a whole volume.
        probabilities: (n, classes) of the real set, by the classifier, if there is one.
        how: it was measured.
    """

    volumes: VolumeSet
    scalars: dict[str, np.ndarray]
    small: np.ndarray
    spectra: np.ndarray
    features: dict[str, np.ndarray]
    probabilities: np.ndarray | None
    how: Measuring

    def __len__(self) -> int:
        return len(self.small)

    @property
    def usable(self) -> np.ndarray:
        """Which volumes are finite and show a brain, (n,) bool."""
        return (self.scalars["finite"] == 1) & ~np.isnan(self.scalars["csf_ml"])


def read_measured(measuring: Measuring, volumes: VolumeSet, files: Sequence[str]) -> Measured:
    """What ``Measurer`` wrote of a set."""
    table = pa.concat_tables(read_shard(storage.join(measuring.folder, file)) for file in files)
    kinds = {field.name: isinstance(field.type, pa.FixedShapeTensorType) for field in table.schema}
    scalars = {name: np.array(table[name].to_pylist()) for name, is_tensor in kinds.items() if not is_tensor}
    features = {AUTOENCODER: tensors(table, "latent")[:, None]}
    for name in (name.removeprefix("slices ") for name in kinds if name.startswith("slices ")):
        planes = tensors(table, f"slices {name}")
        features |= {f"{name}, {plane}": planes[:, number] for number, plane in enumerate(PLANES)}
    probabilities = None
    if CLASSIFIER in kinds:
        features[CLASSIFIER] = tensors(table, CLASSIFIER)[:, None]
        probabilities = tensors(table, "probabilities")
    small, spectra = tensors(table, "small")[:, 0], tensors(table, "spectrum")
    del table
    pa.default_memory_pool().release_unused()
    return Measured(volumes, scalars, small, spectra, features, probabilities, measuring)
