"""The latents that a model was trained on, to tell copies of them from samples. Letters: n latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from voxfleet.data.index import read_index
from voxfleet.data.shards import Manifest
from voxfleet.errors import UserError

_NEAR = 0.05  # the share of subjects that have a neighbour as near as what counts as a usual distance
_PROBES = 1024  # subjects whose neighbours are looked for
_AT_ONCE = 128


@dataclass(frozen=True)
class Known:
    """Latents of a training split, standardised.

    Attributes:
        means: of the posteriors, (n, C d h w) float32.
        variance: of a draw about its mean, per number, (n,) float32.
        nearest: distance (``metrics.latents.nearest_distances``) below which a sample is a copy of one of them.
    """

    means: np.ndarray
    variance: np.ndarray
    nearest: float


def read_known(folder: str, manifest: Manifest, mean: Sequence[float], std: Sequence[float], share: float) -> Known:
    """The training split of latent shards, whose copies are nearer than ``share`` of the distance between two subjects.

    Raises:
        UserError: if a shard cannot be read, or there is but one subject.
    """
    index = read_index(folder, manifest, ("mu", "logvar")).get("train")
    if index is None or len(set(index.subjects.tolist())) < 2:
        raise UserError(f"gate.latents {folder} has fewer than two subjects in split train; give the training latents")
    rows = index.read(np.arange(len(index)), ("mu", "logvar"))
    shift, scale = (np.array(values, dtype=np.float32).reshape(-1, 1, 1, 1) for values in (mean, std))
    means = ((rows["mu"].astype(np.float32) - shift) / scale).reshape(len(index), -1)
    variance = (np.exp(rows["logvar"].astype(np.float32)) / scale**2).reshape(len(index), -1).mean(axis=1)
    return Known(means, variance, share * _usual_distance(means, index.subjects))


def _usual_distance(means: np.ndarray, subjects: np.ndarray) -> float:
    """The distance to the nearest other subject that few have a nearer one than."""
    every = torch.from_numpy(means)
    nearest: list[np.ndarray] = []
    for start in range(0, min(len(means), _PROBES), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        distance = torch.cdist(every[part], every).numpy() / means.shape[1] ** 0.5
        nearest.append(np.where(subjects[part, None] == subjects, np.inf, distance).min(axis=1))
    return float(np.quantile(np.concatenate(nearest), _NEAR))
