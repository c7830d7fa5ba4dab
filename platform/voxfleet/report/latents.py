"""The page of the latents job: what passes, a table of the channels, maps, strips.

Letters: n latents, C channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scipy.stats import norm

from voxfleet.report.figures import png
from voxfleet.report.page import Check, Picture, render

_TEMPLATE = """{% extends "base" %}{% block body %}<div class="wide"><table>
<thead><tr><th>figure</th><th>value</th><th>wanted</th><th></th></tr></thead>
<tbody>
{% for check in checks %}<tr><td>{{ check.name }}</td><td>{{ check.value }}</td><td>{{ check.wanted }}</td>
{% if check.passed is none %}<td></td>{% else %}<td class="{{ 'pass' if check.passed else 'fail' }}">
{{- 'pass' if check.passed else 'fail' }}</td>{% endif %}</tr>
{% endfor %}</tbody>
</table></div>
{% for title, table in tables.items() %}<h2>{{ title }}</h2>
<div class="wide"><table>
<thead><tr>{% for name in table[0] %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table %}<tr>{% for value in row.values() %}
<td{% if value is not string %} class="number"{% endif %}>{{ shown(value) }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}{% endblock %}{% block end %}<h2>How to read this</h2>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endblock %}"""
_REAL, _SYNTHETIC = "#3b6ea5", "#d9822b"
_COLOURS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
# split, "mirrored" or "synthetic": how its latents, and the centre of each of its classes, are drawn
_MARKERS: dict[str, dict[str, Any]] = {
    "train": {"marker": "o", "linewidths": 0, "alpha": 0.55},
    "mirrored": {"marker": "o", "facecolors": "none", "alpha": 0.55},
    "val": {"marker": "s", "facecolors": "none"},
    "test": {"marker": "^", "facecolors": "none"},
    "synthetic": {"marker": "x", "linewidths": 1.8},
}
_CENTRES = {"train": "*", "synthetic": "X"}


def shown(value: Any) -> str:
    """A cell of a table: numbers with three digits, nothing for NaN."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def page(
    lead: str,
    checks: Sequence[Check],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    sections: Mapping[str, Sequence[Picture]],
    notes: Sequence[str],
) -> str:
    """The page; each table is a list of rows with the same keys."""
    content = {"checks": checks, "tables": tables, "notes": notes, "shown": shown}
    return render(_TEMPLATE, title="Voxfleet: latents", lead=lead, sections=sections, **content)


def scatter(
    points: np.ndarray, labels: np.ndarray, splits: np.ndarray, classes: Sequence[str], axes: list[str]
) -> bytes:
    """A map of latents (n, 2): a colour a class, a marker a split; and centres of classes."""
    figure, axis = plt.subplots(figsize=(8.6, 6.2))
    size = float(np.clip(9000 / len(points), 8, 46))
    for split, look in _MARKERS.items():
        for label, name in enumerate(classes):
            chosen = (splits == split) & (labels == label)
            if chosen.any():
                colour = _COLOURS[label % len(_COLOURS)]
                of_class = {**look, "edgecolors" if "facecolors" in look else "color": colour}
                x, y = points[chosen].T
                axis.scatter(x, y, s=size, label=f"{name}, {split} ({chosen.sum()})", **of_class)
    _centres(axis, points, labels, splits)
    axis.set(xlabel=axes[0], ylabel=axes[1])
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    return png(figure)


def _centres(axis: Axes, points: np.ndarray, labels: np.ndarray, splits: np.ndarray) -> None:
    for split, marker in _CENTRES.items():
        if split in splits:
            axis.scatter([], [], s=90, marker=marker, color="0.7", edgecolors="black", label=f"centres, {split}")
        for label in np.unique(labels[splits == split]):
            x, y = points[(splits == split) & (labels == label)].mean(axis=0)
            colour = _COLOURS[label % len(_COLOURS)]
            axis.scatter(x, y, s=200, marker=marker, color=colour, edgecolors="black", zorder=3)


def explained_variance(explained: np.ndarray) -> bytes:
    """Share of the variance along each principal axis (k,), and of all up to it."""
    figure, axis = plt.subplots(figsize=(6, 2.8))
    numbers = np.arange(1, len(explained) + 1)
    axis.bar(numbers, 100 * explained, color=_REAL, label="this axis")
    axis.plot(numbers, 100 * explained.cumsum(), color="0.25", lw=1.2, label="all up to it")
    axis.set(xlabel="principal axis", ylabel="variance of the training split (%)", ylim=(0, 103))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figure.tight_layout()
    return png(figure)


def histograms(edges: np.ndarray, sets: Mapping[str, np.ndarray]) -> bytes:
    """How often each value occurs in a channel, counts (C, bins) of each set, beside a Gaussian; a panel a channel."""
    channels = len(next(iter(sets.values())))
    columns = min(4, channels)
    rows = -(-channels // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.45 * columns, 2.3 * rows), squeeze=False, sharex=True)
    middles, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    for channel, axis in enumerate(axes.flat):
        if channel >= channels:
            axis.set_axis_off()
            continue
        axis.plot(middles, norm.pdf(middles), color="0.6", lw=1, ls="--", label="Gaussian")
        for (name, counts), colour in zip(sets.items(), (_REAL, _SYNTHETIC), strict=False):
            found = counts[channel]
            axis.plot(middles, found / max(found.sum() * width, 1), color=colour, lw=1.3, label=name)
        axis.set_title(f"channel {channel}", fontsize=9)
        axis.set_yticks([])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        if channel >= channels - columns:
            axis.set_xlabel("standard deviations", fontsize=8)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    return png(figure)


def correlations(sets: Mapping[str, np.ndarray]) -> bytes:
    """Correlations of the channels (C, C) of each set, a panel a set."""
    figure, axes = plt.subplots(1, len(sets), figsize=(3.7 * len(sets) + 0.6, 3.3), squeeze=False, layout="constrained")
    for axis, (name, matrix) in zip(axes[0], sets.items(), strict=True):
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.set(xticks=range(len(matrix)), yticks=range(len(matrix)), xlabel="channel", ylabel="channel")
        for (row, column), value in np.ndenumerate(matrix) if len(matrix) <= 8 else ():
            colour = "white" if abs(value) > 0.6 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes[0].tolist(), label="correlation", shrink=0.85)
    return png(figure)
