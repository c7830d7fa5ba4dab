"""The latents that a model was trained on, to tell copies of them from samples. Letters: n latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxfleet.data.index import read_index
from voxfleet.data.shards import Manifest
from voxfleet.errors import UserError


@dataclass(frozen=True)
class Known:
    """Latents of a training split.

    Attributes:
        means: of the posteriors, standardised, (n, C d h w) float32.
        subjects: a number for the subject of each, (n,).
    """

    means: np.ndarray
    subjects: np.ndarray


def read_known(folder: str, manifest: Manifest, mean: Sequence[float], std: Sequence[float]) -> Known:
    """The training split of latent shards, standardised by the ``mean`` and ``std`` of each channel.

    Raises:
        UserError: if a shard cannot be read, or there are less than two subjects.
    """
    index = read_index(folder, manifest, ("mu",)).get("train")
    names, subjects = np.unique([] if index is None else index.subjects, return_inverse=True)
    if index is None or len(names) < 2:
        raise UserError(f"gate.latents {folder} has less than two subjects in split train; give the training latents")
    mu = index.read(np.arange(len(index)), ("mu",))["mu"].astype(np.float32)
    shift, scale = (np.array(values, dtype=np.float32).reshape(-1, 1, 1, 1) for values in (mean, std))
    return Known(((mu - shift) / scale).reshape(len(mu), -1), subjects)
