"""Plots of an evaluation. A colour is a set, the real one dark grey; a dashed line is the second class.

Letters: n volumes of a set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from voxfleet.metrics.statistics import Interval
from voxfleet.report.figures import png

_REAL = "0.25"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # of Okabe and Ito: told apart by all
_LINES = ("-", "--", ":", "-.")
_NEAREST = 0.02  # of the floor: what is nearer is drawn here
_SMALL = 8


@dataclass(frozen=True)
class Row:
    """A figure of each set beside that of real ones.

    Attributes:
        name: of the figure.
        found: by set.
        floor: of real sets, by synthetic set, as sets of another size have another.
    """

    name: str
    found: Mapping[str, Interval]
    floor: Mapping[str, Interval]


@dataclass(frozen=True)
class Curve:
    """A figure along an axis, for one set.

    Attributes:
        x: (points,).
        found, floor: at each.
    """

    x: Sequence[float]
    found: Sequence[Interval]
    floor: Sequence[Interval]


def colours(names: Sequence[str]) -> dict[str, str]:
    """One for each synthetic set."""
    return {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}


def distributions(
    values: Mapping[str, Mapping[str, np.ndarray]], labels: Mapping[str, np.ndarray], classes: Sequence[str], real: str
) -> bytes:
    """Cumulative shares of figures of single volumes, a panel a figure, a curve for each set and class, as PNG.

    Args:
        values: (n,) by the figure's name, with its unit, and by set; what is not finite is left out.
        labels: class of each volume, (n,) by set.
        classes: names.
        real: which set is the real one.
    """
    chosen = {real: _REAL, **colours([name for name in labels if name != real])}
    figure, axes = _panels(len(values), 3, 2.7)
    for axis, (title, by_set) in zip(axes, values.items(), strict=False):
        for name, numbers in by_set.items():
            for label, class_name in enumerate(classes):
                these = numbers[(labels[name] == label) & np.isfinite(numbers)]
                line = {"color": chosen[name], "ls": _LINES[label % len(_LINES)], "lw": 1.4}
                _cumulative(axis, these, label=f"{name}, {class_name}", **line)
        axis.set_xlabel(title, fontsize=_SMALL)
        _plain(axis)
    for axis in axes[::3]:
        axis.set_ylabel("share of volumes", fontsize=_SMALL)
    return _with_legend(figure, axes[0])


def nearest(distances: Mapping[str, Mapping[str, np.ndarray]], held_out: Mapping[str, np.ndarray]) -> bytes:
    """Cumulative shares of the distances to the nearest training volume, a panel a space, as PNG.

    Args:
        distances: of synthetic volumes, (n,) by space and set.
        held_out: of real people who were not trained on, (n,) by space.
    """
    figure, axes = _panels(len(distances), 2, 3.2)
    for axis, (space, by_set) in zip(axes, distances.items(), strict=False):
        chosen = colours(list(by_set))
        _cumulative(axis, held_out[space], label="held-out people", color=_REAL, lw=1.4)
        for name, numbers in by_set.items():
            _cumulative(axis, numbers, label=name, color=chosen[name], lw=1.4)
        axis.set_xlim(left=0)
        axis.set_xlabel(f"distance to the nearest training volume ({space})", fontsize=_SMALL)
        axis.set_ylabel("share of volumes", fontsize=_SMALL)
        axis.legend(fontsize=_SMALL, loc="upper left")
        _plain(axis)
    return png(figure)


def spectra(frequencies: np.ndarray, power: Mapping[str, np.ndarray], real: str) -> bytes:
    """The median power spectrum of each set, and in a band what nine of ten volumes have, as PNG.

    Args:
        frequencies: periods per mm, (bins,).
        power: (n, bins) by set.
        real: which set is the real one.
    """
    chosen = {real: _REAL, **colours([name for name in power if name != real])}
    figure, axis = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
    for name, of_set in power.items():
        low, middle, high = np.quantile(of_set, (0.05, 0.5, 0.95), axis=0)
        axis.semilogy(frequencies, middle, color=chosen[name], lw=1.4, label=name)
        axis.fill_between(frequencies, low, high, color=chosen[name], alpha=0.15, lw=0)
    axis.set_xlabel("spatial frequency, periods per mm", fontsize=_SMALL)
    axis.set_ylabel("power, squared intensity", fontsize=_SMALL)
    axis.legend(fontsize=_SMALL)
    _plain(axis)
    return png(figure)


def forest(rows: Sequence[Row], label: str) -> bytes:
    """Figures with intervals, the real set's beside each synthetic one's, as PNG; ``label`` is that of the axis."""
    names = _sets(rows)
    chosen = colours(names)
    figure, axis = plt.subplots(figsize=(7.5, 0.9 + len(rows) * (0.2 + 0.14 * len(names))), layout="constrained")
    axis.axvline(0, color="0.7", lw=0.8)
    step = 0.7 / (len(names) + 1)
    for place, row in enumerate(rows):
        real = next(iter(row.floor.values()))
        found = [("real", _REAL, real), *((name, chosen[name], row.found[name]) for name in names if name in row.found)]
        for number, (name, colour, interval) in enumerate(found):
            y = place + step * (number - len(names) / 2)
            _bar(axis, interval, y, color=colour, label=name if not place else None)
    _named(axis, [row.name for row in rows])
    axis.set_xlabel(label, fontsize=_SMALL)
    return _with_legend(figure, axis)


def against_floor(rows: Sequence[Row]) -> bytes:
    """Distances over the highest that real sets have, on a log axis: right of 1 is farther than real sets, as PNG.

    A distance without bias may be below 0, and no log axis shows that: it is drawn at the left end.
    """
    names = _sets(rows)
    chosen = colours(names)
    figure, axis = plt.subplots(figsize=(8.5, 1.1 + len(rows) * (0.12 + 0.1 * len(names))), layout="constrained")
    axis.set_xscale("log")
    axis.axvspan(_NEAREST, 1, color="0.93", lw=0)
    axis.axvline(1, color=_REAL, lw=0.8)
    step = 0.7 / len(names)
    for place, row in enumerate(rows):
        for number, name in enumerate(name for name in names if name in row.found):
            y = place + step * (number - (len(names) - 1) / 2)
            _bar(axis, _over(row.found[name], row.floor[name]), y, color=chosen[name])
    for name in names:
        axis.plot([], [], "o-", color=chosen[name], ms=3, lw=1, label=name)
    axis.set_xlim(left=_NEAREST)
    axis.xaxis.set_major_formatter("{x:g}")
    _named(axis, [row.name for row in rows])
    axis.set_xlabel("distance from the real set, over the 97.5 % quantile of that between real sets", fontsize=_SMALL)
    return _with_legend(figure, axis)


def along(panels: Mapping[str, Mapping[str, Curve]], xlabels: Sequence[str], columns: int) -> bytes:
    """Figures along an axis, a curve for each set with its interval, above the band of real sets, as PNG.

    Args:
        panels: curves by set, by the title of the panel; row by row.
        xlabels: of each panel.
        columns: panels beside each other.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    chosen = colours(names)
    figure, axes = _panels(len(panels), columns, 2.6)
    for axis, xlabel, (title, curves) in zip(axes, xlabels, panels.items(), strict=False):
        for name, curve in curves.items():
            low, high = ([getattr(one, end) for one in curve.floor] for end in ("low", "high"))
            axis.fill_between(curve.x, low, high, color=_REAL, alpha=0.2, lw=0, label=f"real sets, as large as {name}")
            low, high = ([getattr(one, end) for one in curve.found] for end in ("low", "high"))
            axis.fill_between(curve.x, low, high, color=chosen[name], alpha=0.2, lw=0)
            axis.plot(curve.x, [one.value for one in curve.found], ".-", color=chosen[name], lw=1.2, label=name)
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        axis.set_title(title, fontsize=_SMALL)
        axis.set_xlabel(xlabel, fontsize=_SMALL)
        _plain(axis)
    return _with_legend(figure, axes[0])


def _sets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.found))


def _over(found: Interval, floor: Interval) -> Interval:
    value, low, high = (max(one / floor.high, _NEAREST) for one in (found.value, found.low, found.high))
    return Interval(value, low, high, found.n)


def _bar(axis: Axes, interval: Interval, y: float, **style: Any) -> None:
    """A dot on a line from the lower to the upper end."""
    reach = [[max(interval.value - interval.low, 0)], [max(interval.high - interval.value, 0)]]
    axis.errorbar(interval.value, y, xerr=reach, fmt="o", ms=3, lw=1, **style)


def _named(axis: Axes, names: Sequence[str]) -> None:
    """The rows of a plot, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(labelsize=_SMALL - 1)


def _cumulative(axis: Axes, values: np.ndarray, **style: Any) -> None:
    if len(values):
        axis.ecdf(values, **style)


def _plain(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=_SMALL - 1)


def _panels(number: int, columns: int, height: float) -> tuple[plt.Figure, np.ndarray]:
    """A figure of ``number`` panels, and their axes row by row."""
    columns = min(number, columns)
    rows = -(-number // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns + 0.4, height * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[number:]:
        axis.set_axis_off()
    return figure, axes.flat[:number]


def _with_legend(figure: plt.Figure, axis: Axes) -> bytes:
    """As PNG, with the legend of ``axis`` above all panels."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)), fontsize=_SMALL)
    return png(figure)
