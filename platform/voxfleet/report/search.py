"""The page of a search: ranking, learning curves, how keys and scores go together, and what each choice costs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from voxfleet.report.figures import png
from voxfleet.report.page import Picture, render

_NAMED = 10  # trials that a legend names
_CONFIGURED = "as configured"  # the value of a key that a condition switched off
_TEMPLATE = """{% extends "base" %}{% block body %}<h2>Ranking</h2>
<div class="wide"><table>
<thead><tr><th></th><th>trial</th><th>{{ metric }}</th><th>samples</th>
{% for key in keys %}<th>{{ key }}</th>{% endfor %}
<th>parameters</th><th>steps/s</th><th>training</th><th></th></tr></thead>
<tbody>
{% for row in rows %}<tr><td class="number">{{ loop.index }}</td><td class="number">{{ row.number }}</td>
<td class="number">{{ row.shown_score }}</td><td class="number">{{ "{:,}".format(row.samples) }}</td>
{% for key in keys %}<td>{{ row.text(key) }}</td>{% endfor %}
<td class="number">{{ "%.2f M" | format(row.parameters / 1e6) }}</td>
<td class="number">{{ "%.3g" | format(row.steps_per_s) if row.steps_per_s else "" }}</td>
<td class="number">{{ "%.0f s" | format(row.trained_s) }}</td>
<td>{{ row.status }}{{ ", a best buy" if row.front }}</td></tr>
{% endfor %}</tbody>
</table></div>
<p>Trials that came farther stand before the others, whatever their score. steps/s: denoising steps of one sample,
measured with nothing else running. A best buy: no other trial that came as far is both better and faster, or better
and smaller.</p>
<h2>Where the time went</h2>
<table><tbody>
{% for name, value in facts.items() %}<tr><td>{{ name }}</td><td class="number">{{ value }}</td></tr>
{% endfor %}</tbody></table>
{% endblock %}{% block end %}{% if removed %}<h2>Impossible</h2>
<ul>{% for line in removed %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}{% if merged %}<h2>The same network as another</h2>
<ul>{% for line in merged %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}{% endblock %}"""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial as the page shows it.

    Attributes:
        number, keys, score, samples, status: which one, what it tried, and how far it came.
        first: the score where all trials are scored first; None where it did not come so far.
        curve: (samples, score) of each validation.
        parameters: of the network.
        steps_per_s: denoising steps of one sample; None where it was not measured.
        trained_s, fit_s: seconds in which its workers trained, and all that its fits took.
        fits: how often it was started.
        front: whether none that came as far is better and cheaper.
    """

    number: int
    keys: Mapping[str, Any]
    score: float
    samples: int
    first: float | None
    status: str
    curve: Sequence[tuple[int, float]]
    parameters: int
    steps_per_s: float | None
    trained_s: float
    fit_s: float
    fits: int
    front: bool

    @property
    def shown_score(self) -> str:
        """The score, if there is one."""
        return f"{self.score:.4g}" if math.isfinite(self.score) else ""

    def text(self, key: str) -> str:
        """The value of a key."""
        return _text(self.keys[key]) if key in self.keys else ""

    def record(self, keys: Sequence[str]) -> dict[str, Any]:
        """As a row of a table, with these ``keys``: None where a condition switched one off."""
        values = {key: json.dumps(self.keys[key]) if key in self.keys else None for key in keys}
        costs = {name: getattr(self, name) for name in ("parameters", "steps_per_s", "trained_s", "fit_s", "fits")}
        curve = [{"samples": samples, "score": score} for samples, score in self.curve]
        facts = {"trial": self.number, "score": self.score, "samples": self.samples, "status": self.status}
        return {**facts, **values, **costs, "best_buy": self.front, "curve": curve}


def page(
    title: str,
    rows: Sequence[TrialRow],
    *,
    metric: str,
    keys: Sequence[str],
    importance: Mapping[str, float],
    facts: Mapping[str, str],
    removed: Sequence[str],
    merged: Sequence[str],
) -> str:
    """The page of the trials in ``rows``, the best first."""
    scored = [row for row in rows if row.curve]
    best = rows[0]
    lead = (
        f"{len(rows)} trials. Best: trial {best.number}, {metric} {best.shown_score} after {best.samples:,} samples, "
    )
    sections = {
        "Learning curves": [Picture(_curves(scored, metric), f"{metric} over the samples that a trial has seen")],
        "Keys and scores": [Picture(_parallel(scored, keys, metric), "where all were first scored; dark is good")],
        "What it costs": [Picture(_costs(scored, metric), "ringed: none that came as far is better and cheaper")],
    }
    if importance:
        caption = "share of the differences between trials, where all were first scored (functional ANOVA)"
        sections["Importance of each key"] = [Picture(_bars(importance), caption)]
    return render(
        _TEMPLATE,
        title=f"Search {title}",
        lead=lead + ", ".join(f"{key} {_text(value)}" for key, value in best.keys.items()) + ".",
        sections=sections,
        **{"rows": rows, "metric": metric, "keys": keys, "facts": facts, "removed": removed, "merged": merged},
    )


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _curves(rows: Sequence[TrialRow], metric: str) -> bytes:
    figure, axis = plt.subplots(figsize=(9, 4))
    for place, row in enumerate(rows):
        label = f"{row.number}: {', '.join(map(row.text, row.keys))}" if place < _NAMED else None
        color = plt.get_cmap("tab10")(place) if place < _NAMED else "0.8"
        axis.plot(*zip(*row.curve, strict=True), marker=".", lw=1.2, label=label, color=color, zorder=-place)
    axis.set_xlabel("samples")
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), title="trial", title_fontsize=7)
    figure.tight_layout()
    return png(figure)


def _parallel(rows: Sequence[TrialRow], keys: Sequence[str], metric: str) -> bytes:
    """Parallel coordinates: an axis a key, and one for the first score."""
    rows = [row for row in rows if row.first is not None]
    first = [row.first or 0.0 for row in rows]
    order = np.argsort(np.argsort(first))
    columns = [_places([row.keys.get(key, _CONFIGURED) for row in rows]) for key in keys]
    columns.append(_places(first))
    figure, axis = plt.subplots(figsize=(max(6, 1.8 * len(columns)), 3.8))
    shades = plt.get_cmap("viridis")(order / max(len(rows) - 1, 1))
    for number in np.argsort(-order):
        spread = 0.012 * (order[number] / max(len(rows) - 1, 1) - 0.5)  # equal values stand side by side
        heights = [places[number] + spread * (column < len(keys)) for column, (places, _) in enumerate(columns)]
        axis.plot(range(len(columns)), heights, color=shades[number], lw=1.6)
    for column, (_, ticks) in enumerate(columns):
        axis.axvline(column, color="0.75", lw=0.8, zorder=-1)
        for height, text in ticks:
            axis.annotate(text, (column, height), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axis.set_xticks(range(len(columns)), [*keys, metric], fontsize=8)
    axis.set_yticks([])
    axis.margins(x=0.12)
    for side in ("left", "right", "top", "bottom"):
        axis.spines[side].set_visible(False)
    figure.tight_layout()
    return png(figure)


def _places(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights in [0, 1] of values, and the values that an axis shows: numbers by size, others in turn."""
    if all(isinstance(value, float) for value in values):
        low, high = min(values), max(values)
        heights = np.array([(value - low) / ((high - low) or 1) for value in values])
        return heights, [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else [(0.0, f"{low:.4g}")]
    texts = sorted({json.dumps(value): value for value in values}.items(), key=lambda entry: _order(entry[1]))
    rank = {text: place / max(len(texts) - 1, 1) for place, (text, _) in enumerate(texts)}
    heights = np.array([rank[json.dumps(value)] for value in values])
    return heights, [(rank[text], _text(value)) for text, value in texts]


def _order(value: Any) -> tuple[int, Any]:
    if isinstance(value, list | tuple):
        return 0, list(value)
    return (0, [value]) if isinstance(value, int | float) else (1, [str(value)])


def _costs(rows: Sequence[TrialRow], metric: str) -> bytes:
    timed = [row for row in rows if row.steps_per_s]
    panels = [
        ("parameters (M)", [(row.parameters / 1e6, row) for row in rows]),
        ("denoising steps/s", [(row.steps_per_s or 0.0, row) for row in timed]),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for axis, (name, points) in zip(axes, panels, strict=True):
        far = max((row.samples for _, row in points), default=0)
        for x, row in points:
            ring = "tab:red" if row.front else "none"
            color = "tab:blue" if row.samples == far else "0.7"
            axis.scatter(x, row.score, s=45, color=color, edgecolors=ring, linewidths=1.5)
            axis.annotate(str(row.number), (x, row.score), xytext=(5, 3), textcoords="offset points", fontsize=7)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(metric)
    figure.suptitle("grey: stopped early", fontsize=9)
    figure.tight_layout()
    return png(figure)


def _bars(importance: Mapping[str, float]) -> bytes:
    names = sorted(importance, key=lambda key: importance[key])
    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.4 * len(names)))
    axis.barh(names, [importance[name] for name in names], color="tab:blue")
    axis.set_xlim(0, 1)
    axis.grid(alpha=0.3, axis="x")
    figure.tight_layout()
    return png(figure)
