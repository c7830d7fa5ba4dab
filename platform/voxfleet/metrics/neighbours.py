"""The nearest of many: rows of features, and volumes that may be shifted.

Letters: n rows of x, m rows of y, d features; D, H, W voxels; k candidates.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from scipy import fft, ndimage

_ROWS, _COLUMNS = 1024, 8192  # of a block that is in memory as float64 (64 MiB)


def nearest(x: np.ndarray, y: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The Euclidean distance of each row of x to the nearest row of y, (n,), and which that is, (n,).

    Args:
        x: (n, d).
        y: (m, d); None for the other rows of x.

    Raises:
        ValueError: as ``neighbours``.
    """
    distances, indices = neighbours(x, y, count=1)
    return distances[:, 0], indices[:, 0]


def neighbours(x: np.ndarray, y: np.ndarray | None = None, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The Euclidean distances of each row of x to the ``count`` nearest rows of y, (n, count), and which they are.

    They are found from inner products, whose rounding may confuse rows that are equally near to six digits; their
    distances are then taken from differences, so that a copy is at 0 exactly. Memory is bounded by blocks of rows.

    Args:
        x: (n, d).
        y: (m, d); None for the other rows of x.
        count: how many, from 1 to the number of rows there are.

    Returns:
        Distances in float64 and indices, the nearest first.

    Raises:
        ValueError: if the shapes do not fit, there are fewer rows than ``count``, or a number is not finite.
    """
    x, others = np.asarray(x), np.asarray(x if y is None else y)
    _check_rows(x, others, count + (y is None), count)
    centre = others.mean(axis=0, dtype=np.float64)  # inner products are precise about the mean
    distances, indices = np.empty((len(x), count)), np.empty((len(x), count), dtype=np.int64)
    for block in _slices(len(x), _ROWS):
        rows, own = x[block], np.arange(block.start, block.stop)[:, None]
        found = np.zeros((len(rows), 0)), np.zeros((len(rows), 0), dtype=np.int64)
        for at in _slices(len(others), _ROWS):
            square = _squared_distances(rows, others[at], centre)
            candidates = np.broadcast_to(np.arange(at.start, at.stop), square.shape)
            if y is None:
                square[candidates == own] = np.inf
            found = _smallest(np.hstack([found[0], square]), np.hstack([found[1], candidates]), count)
        exact = [
            [np.linalg.norm(row.astype(np.float64) - others[i]) for i in near]
            for row, near in zip(rows, found[1], strict=True)
        ]
        distances[block], indices[block] = _smallest(np.array(exact), found[1], count)
    return distances, indices


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The Euclidean distance of each row of x (n, d) to each of y (m, d), (n, m), to the rounding of inner products.

    Raises:
        ValueError: as ``neighbours``.
    """
    _check_rows(x, y, 1, 1)
    return np.sqrt(np.maximum(_squared_distances(x, y, y.mean(axis=0, dtype=np.float64)), 0))


def _check_rows(x: np.ndarray, y: np.ndarray, needed: int, count: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.size:
        raise ValueError(f"rows are {x.shape} and {y.shape}; give two arrays, (n, d) and (m, d), that are not empty")
    if count < 1 or len(y) < needed:
        raise ValueError(f"count is {count}, and there are {len(y)} rows to choose from; it must be from 1 to those")
    if not all(np.isfinite([array.min(), array.max()]).all() for array in (x, y)):  # no copy, unlike isfinite(array)
        raise ValueError("a row holds numbers that are not finite; leave such rows out")


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _squared_distances(x: np.ndarray, y: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(n, m), up to rounding, of rows less ``centre`` (d,)."""
    kind = np.result_type(x, y, np.float32)
    square = np.zeros((len(x), len(y)), dtype=kind)
    for columns in _slices(x.shape[1], _COLUMNS):
        a, b = (torch.from_numpy((rows[:, columns] - centre[columns]).astype(kind)) for rows in (x, y))
        square += (a.square().sum(dim=1)[:, None] - 2 * a @ b.T + b.square().sum(dim=1)).numpy()
    return square


def _smallest(values: np.ndarray, indices: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` smallest of each row in order, and their indices."""
    if values.shape[1] > count:
        part = np.argpartition(values, count - 1, axis=1)[:, :count]
        values, indices = np.take_along_axis(values, part, axis=1), np.take_along_axis(indices, part, axis=1)
    order = np.argsort(values, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(indices, order, axis=1)


def thumbnails(volumes: np.ndarray, edge: int = 12) -> np.ndarray:
    """Rows to look for candidates in, (n, edge**3) float32: means of blocks of each volume, moved to its middle.

    Its centre of mass is moved there by whole voxels, so that a copy that was shifted has about the same row.

    Args:
        volumes: (n, D, H, W).
        edge: blocks along each axis.

    Raises:
        ValueError: if it is not a set of volumes.
    """
    if volumes.ndim != 4 or not volumes.size:
        raise ValueError(f"volumes are {volumes.shape}; give (n, D, H, W) that is not empty")
    moved = np.stack([_centred(volume) for volume in volumes.astype(np.float32)])
    return F.adaptive_avg_pool3d(torch.from_numpy(moved), edge).flatten(1).numpy()


def _centred(volume: np.ndarray) -> np.ndarray:
    offset = (np.array(volume.shape) - 1) / 2 - ndimage.center_of_mass(volume)
    whole = np.rint(np.nan_to_num(offset)).astype(int)  # an empty volume has no centre
    return np.roll(volume, whole, axis=(0, 1, 2))


def aligned_distances(volume: np.ndarray, candidates: np.ndarray, reach: int = 3) -> np.ndarray:
    """Root mean square difference of ``volume`` to each candidate, (k,), the smallest over shifts of whole voxels.

    So a copy that was shifted is one still. Beyond its edges a volume is 0. The shift is that of the largest
    cross-correlation, found by three Fourier transforms a candidate: take few, by ``thumbnails`` and ``neighbours``.

    Args:
        volume: (D, H, W), intensities in [0, 1].
        candidates: (k, D, H, W).
        reach: largest shift along each axis, either way, in voxels.

    Raises:
        ValueError: if the shapes do not fit, reach is negative or as long as an edge, or a number is not finite.
    """
    if volume.ndim != 3 or not candidates.size or candidates.shape[1:] != volume.shape:
        raise ValueError(f"volume is {volume.shape}, candidates {candidates.shape}; give (D, H, W) and (k, D, H, W)")
    if not 0 <= reach < min(volume.shape):
        raise ValueError(f"reach is {reach}; it must be from 0 to less than the edges, {volume.shape}")
    if not (np.isfinite(volume).all() and np.isfinite(candidates).all()):
        raise ValueError("a volume holds numbers that are not finite; leave it out")
    shape = [fft.next_fast_len(edge + reach, real=True) for edge in volume.shape]  # room: no shift wraps around
    spectrum = fft.rfftn(volume, shape)
    return np.array([_aligned_distance(volume, candidate, spectrum, shape, reach) for candidate in candidates])


def _aligned_distance(
    volume: np.ndarray, candidate: np.ndarray, spectrum: np.ndarray, shape: list[int], reach: int
) -> float:
    correlation = fft.irfftn(spectrum * fft.rfftn(candidate, shape).conj(), shape)
    shifts = itertools.product(range(-reach, reach + 1), repeat=3)
    best = max(shifts, key=lambda shift: correlation[shift])
    moved = np.roll(np.pad(candidate, reach), best, axis=(0, 1, 2))
    difference = np.pad(volume, reach).astype(np.float64) - moved
    return float(np.sqrt(np.square(difference).sum() / volume.size))
