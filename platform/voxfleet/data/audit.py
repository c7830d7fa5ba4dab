"""The audit of duplicates: one scan, or one person, under the names of several subjects.

A duplicate across splits leaks the training set into the evaluation. Volumes and latents are audited alike, by two
small values that are made of each array where it lies (``audit_columns``) and compared in one place
(``find_duplicates``): a hash, for exact copies, and a descriptor, for near ones.

Two heads correlate above 0.9 as they are. What makes one person's head differ from another's is kept in two ways. A
descriptor holds the pattern at the scale of one to three blocks: finer lie noise and the voxel grid, coarser lie
contrast and bias field. And descriptors are compared after whitening: what varies most over the cohort (the size and
the turn of the head, ventricles, scanners) is shared by many, and counts the less.

Whitening takes what many rows show for common, so that it hides a head whose copies are a quarter of the rows or more.
Among at most 1024 rows, where a few copies are as many, a correlation above 0.99 before whitening counts as well. So
measured, two simulated people correlate by at most 0.90; the same scan as another type, on an oblique grid, in slices
of 5 or 7 mm, with 4 % noise, another gamma or shifted by 0.5 mm, and another scan of a head that lies alike, by 0.99
or more. Shifted by 1.5 mm (0.975 at worst) or turned by 2 degrees (0.978), copies are left to the whitening.

Measured on the simulated cohort (volumes at 5 mm, each kind of copy in cohorts of 8 to 340 people): two people
correlate by at most 0.46 (0.39 among 340, where 99.9 % lie below 0.27; without whitening 0.67). The same scan with
another gamma, 4 % noise or from another grid correlates by 0.95 or more, shifted by 1.5 mm along each axis by 0.77 or
more; another scan of the same person (new scanner, contrast, bias field and noise) by 0.83 or more where the head lies
alike, and by 0.67 to 0.81 (medians; 0.54 at worst) where it is turned by 2 degrees and shifted by 1 mm. Turned by 4
degrees it is found less than half the time: register such images first. Latents of a small autoencoder of these
volumes give the same figures within 0.06 (two people: at most 0.50).
"""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage
from scipy.linalg import solve_triangular

from voxfleet.errors import UserError

_NUMBERS = 2048  # of a descriptor, at most
_HIGH_PASS = 1.0  # blocks
_AIR = 1e-3  # of the largest variance: blocks below carry nothing
_SHRINKAGE = 2.0
_SAME = 0.99  # correlation before whitening above which two images are one ...
_FEW = 1024  # ... among at most so many rows: among more, whitening hides only a head of hundreds of copies
_CHUNK = 1024  # rows whose correlations with all others are in memory at once


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What counts as the same scan under the names of two subjects, and what then happens.

    Args:
        near: Correlation, from 0 to 1, above which two images of different subjects are near duplicates; null looks for
            exact copies only.
        allow_across_splits: Carry on where a scan is in two splits under two names; else that is an error.
    """

    near: float | None = 0.6
    allow_across_splits: bool = False

    def __post_init__(self) -> None:
        if self.near is not None and not 0 < self.near < 1:
            raise ValueError(f"near={self.near} must be between 0 and 1, or null")


@dataclass(frozen=True)
class Duplicate:
    """Two images of different subjects that are one: each pair holds first the one, then the other.

    Attributes:
        kind: "exact" (every number is the same) or "near".
        subjects: their ids.
        splits: their splits.
        sources: their files.
        correlation: of the descriptors, 1 for an exact copy.
    """

    kind: Literal["exact", "near"]
    subjects: tuple[str, str]
    splits: tuple[str, str]
    sources: tuple[str, str]
    correlation: float

    def __str__(self) -> str:
        (a, b), (split_a, split_b), (from_a, from_b) = self.subjects, self.splits, self.sources
        how = "exact copy" if self.kind == "exact" else f"correlation {self.correlation:.2f}"
        return f"{a} ({split_a}, {from_a}) and {b} ({split_b}, {from_b}), {how}"


def audit_columns(array: np.ndarray) -> dict[str, str]:
    """``{"fingerprint": ..., "descriptor": ...}`` of a volume or latent, as text that a row of a ledger can hold.

    The descriptor is packed as base64 of float16: 5 KB at most.
    """
    packed = base64.b64encode(descriptor(array).astype("<f2").tobytes()).decode()
    return {"fingerprint": fingerprint(array), "descriptor": packed}


def fingerprint(array: np.ndarray) -> str:
    """sha256 of the shape and the bytes of ``array``: the same for exact copies."""
    return hashlib.sha256(repr((array.dtype.str, array.shape)).encode() + array.tobytes()).hexdigest()


def descriptor(array: np.ndarray) -> np.ndarray:
    """(K,) float32, K at most 2048: what is this person's own in ``array``, (D, H, W) or (C, D, H, W).

    Means of blocks (as cubic a number of them as fits, 12 x 12 x 12 for a volume), less their Gaussian mean over the
    neighbours, each channel scaled to mean 0 and variance 1; so scale and offset of the intensities do not matter.
    """
    channels = array.astype(np.float32)[None] if array.ndim == 3 else array.astype(np.float32)
    edge = int((_NUMBERS / len(channels)) ** (1 / 3) + 1e-6)
    blocks = _block_means(channels, edge)
    detail = blocks - ndimage.gaussian_filter(blocks, (0, _HIGH_PASS, _HIGH_PASS, _HIGH_PASS), mode="nearest")
    detail -= detail.mean(axis=(1, 2, 3), keepdims=True)
    scale = detail.std(axis=(1, 2, 3), keepdims=True)
    return (detail / np.where(scale > 0, scale, 1)).ravel()


def _block_means(channels: np.ndarray, edge: int) -> np.ndarray:
    """``channels`` (C, D, H, W) as means of blocks, ``edge`` along each axis (or as many as it has voxels)."""
    for axis in (1, 2, 3):
        starts = np.linspace(0, channels.shape[axis], min(edge, channels.shape[axis]), endpoint=False).astype(int)
        sizes = np.diff(starts, append=channels.shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)])
        channels = np.add.reduceat(channels, starts, axis=axis) / sizes.astype(np.float32)
    return channels


def find_duplicates(rows: Sequence[Mapping[str, Any]], config: AuditConfig) -> list[Duplicate]:
    """The pairs of ``rows`` of different subjects that are one image: exact copies first, then the nearest.

    Near is measured by the correlation of the descriptors less their mean over all rows, whitened by their covariance
    (shrunken towards the identity), or, among at most 1024 rows, by that of the descriptors themselves where it is
    above 0.99. 20,000 rows take about 1 GB.

    Args:
        rows: each with ``subject_id``, ``split``, ``source`` and the ``audit_columns`` of its array.
        config: what counts as near.
    """
    pairs = [(a, b, 1.0) for a, b in _exact(rows)]
    if config.near is not None and len(rows) > 1:
        near = [pair for pair in _near(rows, config.near) if not _same(rows, pair, "fingerprint")]
        pairs += sorted(near, key=lambda pair: -pair[2])
    return [_duplicate(rows[a], rows[b], correlation) for a, b, correlation in pairs]


def _exact(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """Pairs of equal fingerprints: every copy with the first, which is enough to see that any two are in two splits."""
    copies = defaultdict(list)
    for index, row in enumerate(rows):
        copies[row["fingerprint"]].append(index)
    for first, *others in copies.values():
        yield from ((first, other) for other in others if rows[first]["subject_id"] != rows[other]["subject_id"])


def _near(rows: Sequence[Mapping[str, Any]], limit: float) -> Iterator[tuple[int, int, float]]:
    """(row, later row, correlation) of different subjects, where it is above ``limit``."""
    _, subjects = np.unique([row["subject_id"] for row in rows], return_inverse=True)
    descriptors = np.stack([np.frombuffer(base64.b64decode(row["descriptor"]), dtype="<f2") for row in rows])
    descriptors = descriptors.astype(np.float32)
    plain = _unit(descriptors) if len(rows) <= _FEW else None
    white = _unit(_whiten(descriptors))
    for start in range(0, len(rows), _CHUNK):
        correlation = white[start : start + _CHUNK] @ white[start:].T
        if plain is not None:
            same = plain[start : start + _CHUNK] @ plain[start:].T
            correlation = np.maximum(correlation, np.where(same > _SAME, same, -1))
        alike = np.triu(correlation > limit, k=1) & (subjects[start : start + _CHUNK, None] != subjects[None, start:])
        for a, b in np.argwhere(alike):
            yield start + int(a), start + int(b), min(float(correlation[a, b]), 1.0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` (n, K) of length 1; 0 where they are."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def _whiten(centred: np.ndarray) -> np.ndarray:
    """(rows, K) float32: descriptors (rows, K) less their mean (taken from them in place), whitened."""
    centred -= centred.mean(axis=0)
    variance = np.square(centred).mean(axis=0)
    centred = centred[:, variance > _AIR * variance.max()]
    if not centred.size:
        return centred
    # the inverse root of the covariance, raised by a multiple of the mean variance of the directions that are there
    covariance = centred.T @ centred / len(centred)
    directions = min(len(centred) - 1, len(covariance))
    covariance[np.diag_indices_from(covariance)] += _SHRINKAGE * np.trace(covariance) / directions
    root = np.linalg.cholesky(covariance)
    return solve_triangular(root, centred.T, lower=True, overwrite_b=True, check_finite=False).T


def _same(rows: Sequence[Mapping[str, Any]], pair: tuple[int, int, float], key: str) -> bool:
    return rows[pair[0]][key] == rows[pair[1]][key]


def _duplicate(a: Mapping[str, Any], b: Mapping[str, Any], correlation: float) -> Duplicate:
    kind: Literal["exact", "near"] = "exact" if a["fingerprint"] == b["fingerprint"] else "near"
    ids, splits, sources = ((a[key], b[key]) for key in ("subject_id", "split", "source"))
    return Duplicate(kind, ids, splits, sources, correlation)


def check_duplicates(duplicates: Sequence[Duplicate], config: AuditConfig, where: str) -> str:
    """A line for the user about ``duplicates``, empty if there are none; those within a split are no error.

    Args:
        duplicates: as ``find_duplicates`` gives them.
        config: whether pairs across splits are allowed.
        where: the folder or file that holds them, for the message.

    Raises:
        UserError: if a pair lies in different splits and that is not allowed.
    """
    across = [duplicate for duplicate in duplicates if duplicate.splits[0] != duplicate.splits[1]]
    if across and not config.allow_across_splits:
        raise UserError(
            f"{where}: one image is in two splits under two subject ids ({len(across)} such pairs); the first: "
            f"{across[0]}; remove one, give both the same subject_id, or set audit.allow_across_splits"
        )
    if not duplicates:
        return ""
    return f"the same image under two subject ids: {len(duplicates)} pairs, the first: {duplicates[0]}"
