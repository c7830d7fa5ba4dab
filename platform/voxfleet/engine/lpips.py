"""How unlike the middle slices of two volumes look to a network such as LPIPS: does a synthetic set vary as people do?

Letters: N volumes of both sets.
"""

from collections.abc import Sequence

import numpy as np
import ray
import torch

from voxfleet import storage
from voxfleet.data.sets import VolumeSet
from voxfleet.engine.between import spread_ratio
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.comparison import Figure, compared
from voxfleet.engine.measures import Measured
from voxfleet.errors import UserError
from voxfleet.metrics.resampling import Pool
from voxfleet.metrics.scores import pairs
from voxfleet.models.slice_distance import SliceDistance, slice_distance

_VOLUMES = 32  # of each set, at most: 496 pairs in three planes, which a network takes minutes for
_PAIRS = 62  # of a task
_AT_ONCE = 8
_TINY = 1e-12
_KEY, _NAME = "lpips", "LPIPS of two volumes, synthetic over real"


def read_network(uri: str, shape: Sequence[int]) -> SliceDistance:
    """The network in the file ``uri``, for slices of volumes of this ``shape``.

    Raises:
        UserError: if it is not there, or is no such network.
    """
    try:
        return slice_distance(storage.read_bytes(uri), [_others(shape, axis) for axis in range(3)])
    except ValueError as error:
        raise UserError(f"features.lpips {uri}: {error}") from error


def _others(shape: Sequence[int], axis: int) -> tuple[int, int]:
    first, second = (edge for other, edge in enumerate(shape) if other != axis)
    return first, second


def lpips_figure(uri: str, real: Measured, synthetic: Measured, *, repeats: int, seed: int) -> Figure:
    """The mean distance of two volumes of the synthetic set over that of two of the real one.

    It rests on at most 32 volumes of each set, the first of as many subjects, and on all pairs of them.
    """
    rows = [_chosen(measured, seed) for measured in (real, synthetic)]
    if min(map(len, rows)) < 2:
        return Figure(key=_KEY, name=_NAME, reason="there are no two volumes in a set")
    network = ray.put(storage.read_bytes(uri))
    apart = [_apart(network, real.how.shape, of, chosen) for of, chosen in zip((real, synthetic), rows, strict=True)]
    first, second = map(len, rows)
    pool = Pool(np.arange(first + second), np.arange(first), np.arange(first, first + second))
    with ray_errors():
        blocks = [ray.get(parts) for parts in apart]
    both = np.zeros((first + second, first + second))
    for offset, size, found in zip((0, first), (first, second), blocks, strict=True):
        i, j = offset + pairs(size, size**2, 0).T
        both[i, j] = both[j, i] = np.concatenate(found)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return spread_ratio(both, a, b)

    if both[:first, :first].max() < _TINY:
        return Figure(key=_KEY, name=_NAME, reason="the network tells no two real volumes apart")
    return compared(_KEY, _NAME, distance, pool, repeats=repeats, seed=seed, less_is_worse=True)


def _chosen(measured: Measured, seed: int) -> np.ndarray:
    """Rows of some volumes, drawn evenly, one a subject."""
    usable = np.flatnonzero(measured.usable)
    first = usable[np.unique(measured.volumes.subjects[usable], return_index=True)[1]]
    count = min(_VOLUMES, len(first))
    return np.sort(np.random.default_rng(seed).choice(first, count, replace=False))


def _apart(network: ray.ObjectRef, shape: Sequence[int], of: Measured, rows: np.ndarray) -> list[ray.ObjectRef]:
    """The distances of each two of the volumes in ``rows``, in the order of ``pairs``, in parts."""
    slices = _middle_slices.remote(of.volumes, rows)
    every = pairs(len(rows), len(rows) ** 2, 0)
    return [
        _distances.remote(network, shape, slices, every[start : start + _PAIRS])
        for start in range(0, len(every), _PAIRS)
    ]


@ray.remote(num_cpus=1)
def _middle_slices(volumes: VolumeSet, rows: np.ndarray) -> list[np.ndarray]:
    """The middle slices of the volumes, across each axis, (n, H, W) float32 each."""
    read = np.stack(volumes.read(rows)[0])
    return [np.take(read, read.shape[axis] // 2, axis=axis).clip(0, 1) for axis in (1, 2, 3)]


@ray.remote(num_cpus=1)
def _distances(data: bytes, shape: Sequence[int], slices: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The mean distance over the three planes of each two ``rows`` (n, 2), (n,)."""
    torch.set_num_threads(1)
    network = slice_distance(data, [])
    planes = []
    for plane in slices:
        first, second = (torch.from_numpy(plane[rows[:, side]]) for side in (0, 1))
        parts = zip(first.split(_AT_ONCE), second.split(_AT_ONCE), strict=True)
        planes.append(torch.cat([network(*part) for part in parts]).numpy())
    return np.stack(planes).mean(axis=0, dtype=np.float64)
