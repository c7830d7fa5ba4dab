"""The plots of an evaluation: what of its figures and volumes goes into which."""

from collections.abc import Iterator, Mapping

import numpy as np

from voxfleet.engine.comparison import ANATOMY, DISEASE, Figure
from voxfleet.engine.measures import PLANES, Measured
from voxfleet.engine.verdict import Verdict
from voxfleet.metrics.anatomy import frequencies
from voxfleet.report import plots
from voxfleet.report.page import Picture

# by how the key of a figure ends
_UNITS = {"ml": "mL", "mm": "mm", "sharpness": "share of energy", "mean": "of the range"}


def drawn(measured: Mapping[str, Measured], verdicts: Mapping[str, Verdict], real: str) -> dict[str, list[Picture]]:
    """The plots by section; ``measured`` holds all sets, ``real`` names the real one."""
    return {
        "Distances": list(_distances(verdicts)),
        "By slice position": list(_positions(verdicts)),
        "Anatomy": list(_anatomy(measured, real)),
        DISEASE: list(_effects(verdicts, measured[real])),
        "Nearest training volumes": list(_nearest(verdicts)),
    }


def _distances(verdicts: Mapping[str, Verdict]) -> Iterator[Picture]:
    if rows := [row for row in _rows(verdicts, "Distances") if all(floor.high > 0 for floor in row.floor.values())]:
        caption = (
            "dots are distances, lines 95 % intervals; in the shaded part a synthetic set is no farther from the real "
            "one than real sets are from each other. What is at the left end may be 0 or less"
        )
        yield Picture(plots.against_floor(rows), caption)


def _positions(verdicts: Mapping[str, Verdict]) -> Iterator[Picture]:
    """A picture for each network and way, a panel for each plane."""
    first = next(iter(verdicts.values()))
    for way, network in dict.fromkeys((one.way, one.network) for one in first.positions):
        panels, labels = {}, []
        for axis, plane in enumerate(PLANES):
            chosen = {
                name: [one for one in verdict.positions if (one.way, one.network, one.plane) == (way, network, plane)]
                for name, verdict in verdicts.items()
            }
            curves = {
                name: plots.Curve([one.mm for one in found], [one.found for one in found], [one.floor for one in found])
                for name, found in chosen.items()
                if found
            }
            if curves:
                panels[f"{way}, {plane} slices"] = curves
                labels.append(f"{'xyz'[axis]}, mm to the {('right', 'front', 'top')[axis]}")
        caption = f"{way} of single slices by {network}, at each place; grey: between real sets of as many subjects"
        yield Picture(plots.along(panels, labels, len(PLANES)), caption)


def _anatomy(measured: Mapping[str, Measured], real: str) -> Iterator[Picture]:
    classes = measured[real].volumes.classes
    values = {
        _with_unit(key, name): {of: one.scalars[key] for of, one in measured.items()}
        for key, name in ANATOMY.items()
        if all(key in one.scalars for one in measured.values())
        and any(np.isfinite(one.scalars[key]).any() for one in measured.values())
    }
    labels = {
        name: np.array([classes.index(one.volumes.classes[label]) for label in one.volumes.labels])
        for name, one in measured.items()
    }
    if values:
        caption = "share of volumes of a set and class that lie below: curves of real and synthetic sets should meet"
        yield Picture(plots.distributions(values, labels, classes, real), caption)
    how = measured[real].how
    power = {name: one.spectra[one.usable] for name, one in measured.items() if one.usable.any()}
    caption = "power spectra: lines are medians, bands nine volumes of ten. Blur lowers the right end, noise lifts it"
    yield Picture(plots.spectra(frequencies(how.shape, how.spacing_mm), power, real), caption)


def _with_unit(key: str, name: str) -> str:
    unit = _UNITS.get(key.split("_")[-1])
    return f"{name}, {unit}" if unit else name


def _effects(verdicts: Mapping[str, Verdict], real: Measured) -> Iterator[Picture]:
    if rows := list(_rows(verdicts, DISEASE, "effect/")):
        second, first = real.volumes.classes[1], real.volumes.classes[0]
        short = [plots.Row(row.name.split(f", {second} less")[0], row.found, row.floor) for row in rows]
        caption = f"how far {second} is from {first}, with 95 % intervals: does the synthetic set carry the disease?"
        yield Picture(plots.forest(short, f"Hedges' g, {second} less {first}"), caption)


def _rows(verdicts: Mapping[str, Verdict], group: str, prefix: str = "") -> Iterator[plots.Row]:
    """The figures of a group that all sets have been given, beside each other."""
    by_key: dict[str, dict[str, Figure]] = {}
    for name, verdict in verdicts.items():
        for figure in verdict.figures.get(group, []):
            if figure.found and figure.floor and figure.key.startswith(prefix):
                by_key.setdefault(figure.key, {})[name] = figure
    for figures in by_key.values():
        found = {name: figure.found for name, figure in figures.items() if figure.found}
        floor = {name: figure.floor for name, figure in figures.items() if figure.floor}
        yield plots.Row(next(iter(figures.values())).name, found, floor)


def _nearest(verdicts: Mapping[str, Verdict]) -> Iterator[Picture]:
    distances: dict[str, dict[str, np.ndarray]] = {}
    held_out: dict[str, np.ndarray] = {}
    for space in dict.fromkeys(space for verdict in verdicts.values() for space in verdict.near):
        for name, verdict in verdicts.items():
            if space in verdict.near:
                distances.setdefault(space, {})[name] = verdict.near[space].synthetic
                held_out[space] = verdict.near[space].held_out
    if distances:
        caption = (
            "a curve that rises left of that of the held-out people, at its very beginning, shows copies; blurred "
            "samples are nearer to everybody, and their whole curve is shifted"
        )
        yield Picture(plots.nearest(distances, held_out), caption)
