"""Distances of slices at one place each: where in the head synthetic volumes differ from real ones.

Letters: N volumes of both sets, S slices, F features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from voxfleet.engine.between import coordinates, frechet_distance, kid
from voxfleet.engine.cluster import ray_errors
from voxfleet.engine.comparison import Both
from voxfleet.engine.measures import PLANES, Measuring
from voxfleet.metrics.distances import kernel_matrix
from voxfleet.metrics.resampling import Distance, Pool, compare
from voxfleet.metrics.statistics import Interval

KID, FRECHET = "KID", "Frechet distance"
_VOLUMES = 512  # of each set, at most: a kernel of all would cost as much at every place as it does once
_REPEATS = 40  # of every draw, at most: intervals for a plot
_COMPONENTS, _LEAST_COMPONENTS = 64, 8


@dataclass(frozen=True, kw_only=True)
class Position:
    """A distance of the slices at one place.

    Attributes:
        way: KID or FRECHET.
        network: that gave the features.
        plane: across which axis the slices lie.
        mm: the place along that axis, in mm from the origin to the right, to the front or to the top.
        found: with its interval.
        floor: between real sets of as many subjects.
    """

    way: str
    network: str
    plane: str
    mm: float
    found: Interval
    floor: Interval


def position_figures(both: Both, how: Measuring, *, repeats: int, seed: int) -> list[Position]:
    """The distances at each place; none where there are too few volumes. Frechet takes 32 real and 16 synthetic ones.

    A task finds those of one place, from at most 512 volumes of each set.
    """
    rows = [_drawn(of, seed) for of in (both.pool.real, both.pool.synthetic)]
    chosen = np.concatenate(rows)
    pool = Pool(both.pool.subjects[chosen], np.arange(len(rows[0])), np.arange(len(rows[0]), len(chosen)))
    if pool.n < 2:
        return []
    asked = [
        _at.remote(both.features[f"{network}, {plane}"].ref, chosen, number, pool, min(repeats, _REPEATS), seed)
        for network in how.slice_networks
        for axis, plane in enumerate(PLANES)
        for number in range(len(how.positions[axis]))
    ]
    places: list[dict[str, Any]] = [
        {"network": network, "plane": plane, "mm": mm}
        for network in how.slice_networks
        for plane, along in zip(PLANES, places_mm(how), strict=True)
        for mm in along
    ]
    with ray_errors():
        found = ray.get(asked)
    return [
        Position(way=way, found=one, floor=floor, **place)
        for place, ways in zip(places, found, strict=True)
        for way, (one, floor) in ways.items()
    ]


def places_mm(how: Measuring) -> list[tuple[float, ...]]:
    """Where the slices of each plane lie along its axis: the RAS coordinate (mm) of their middle voxel."""
    middle = (np.array(how.shape) - 1) / 2
    places = []
    for axis, positions in enumerate(how.positions):
        voxels = np.tile(middle, (len(positions), 1))
        voxels[:, axis] = positions
        places.append(tuple((voxels @ how.affine[axis, :3] + how.affine[axis, 3]).tolist()))
    return places


def _drawn(rows: np.ndarray, seed: int) -> np.ndarray:
    """At most ``_VOLUMES`` of them, in their order."""
    if len(rows) <= _VOLUMES:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, _VOLUMES, replace=False))


@ray.remote(num_cpus=1)
def _at(
    features: np.ndarray, rows: np.ndarray, place: int, pool: Pool, repeats: int, seed: int
) -> dict[str, tuple[Interval, Interval]]:
    """Found and floor of each way, for the slices at one place of the volumes in ``rows``."""
    found = {}
    for way, distance in _ways(features[rows, place, None], pool):
        comparison = compare(distance, pool, repeats=repeats, seed=seed)
        found[way] = (comparison.found, comparison.floor)
    return found


def _ways(slices: np.ndarray, pool: Pool) -> Iterator[tuple[str, Distance]]:
    """The distances that the number of volumes allows, of slices (N, 1, F)."""
    kernels = kernel_matrix(slices, slices)
    yield KID, lambda a, b: kid(kernels, a, b)
    components = min(_COMPONENTS, pool.n // 2, slices.shape[2])
    if components >= _LEAST_COMPONENTS:
        along = coordinates(slices, pool.real, components)
        yield FRECHET, lambda a, b: frechet_distance(along, a, b)
