"""The page of the classify job: a table for each test, ROC curves, and what synthetic volumes are taken for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np

from voxfleet.metrics.classification import ACCURACY, AUC, SENSITIVITY, SPECIFICITY, roc_curve
from voxfleet.metrics.statistics import Interval
from voxfleet.report.figures import png
from voxfleet.report.page import Picture, render

_TEMPLATE = """{% extends "base" %}{% block body %}{% for test in tests %}<h2>{{ test.title }}</h2>
<p>{{ test.note }}</p>
<div class="wide"><table>
<thead><tr><th>trained on</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}
<th>AUC less that of real only</th><th>p (DeLong)</th></tr></thead>
<tbody>
{% for row in test.rows %}<tr><td>{{ row.title }}</td>
{% for name in names %}<td class="number">{{ shown(row.figures.get(name)) }}</td>{% endfor %}
<td class="number">{{ shown(row.difference) }}</td>
<td class="number">{{ "%.3f" | format(row.p_value) if row.p_value is not none else "" }}</td></tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}{% if consistency %}<h2>Are synthetic volumes taken for what they were asked to be?</h2>
<p>Share that the classifiers trained on real volumes call by the class that was asked for; beside it, their accuracy on
real people, which bounds what can be expected.</p>
<table>
<thead><tr><th>volumes</th><th>share</th></tr></thead>
<tbody>
{% for name, value in consistency.items() %}<tr><td>{{ name }}</td><td class="number">{{ shown(value) }}</td></tr>
{% endfor %}</tbody>
</table>
{% endif %}{% endblock %}{% block end %}<h2>How to read this</h2>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endblock %}"""
_NAMES = (AUC, ACCURACY, SENSITIVITY, SPECIFICITY)


@dataclass(frozen=True)
class RegimeRow:
    """One regime in one test.

    Attributes:
        title: of the regime.
        figures: AUC, accuracy, sensitivity, specificity, those that there are.
        difference, p_value: of its AUC from that of real volumes alone, if there is one.
        scores, is_positive: of each subject, (n,).
    """

    title: str
    figures: Mapping[str, Interval]
    difference: Interval | None
    p_value: float | None
    scores: np.ndarray
    is_positive: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """All regimes on the same subjects."""

    title: str
    note: str
    rows: Sequence[RegimeRow]


def shown(value: Interval | None) -> str:
    """``0.81 (0.70 to 0.89)``."""
    return "" if value is None else f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


def page(lead: str, tests: Sequence[Comparison], consistency: Mapping[str, Interval], notes: Sequence[str]) -> str:
    """The page; every interval holds 95 %."""
    picture = Picture(roc_curves(tests), "one score a subject: the mean over its images and over all classifiers")
    return render(
        _TEMPLATE,
        title="Voxfleet: real and synthetic volumes to train a classifier",
        lead=lead,
        sections={"ROC curves": [picture]},
        **{"tests": tests, "names": _NAMES, "consistency": consistency, "notes": notes, "shown": shown},
    )


def roc_curves(tests: Sequence[Comparison]) -> bytes:
    """The ROC curve of each regime, one panel a test, as PNG."""
    figure, axes = plt.subplots(1, len(tests), figsize=(4.6 * len(tests), 4.6), squeeze=False)
    for axis, test in zip(axes[0], tests, strict=True):
        axis.plot([0, 1], [0, 1], color="0.8", lw=1)
        for row in test.rows:
            area = f" ({row.figures[AUC].value:.2f})" if AUC in row.figures else ""
            axis.plot(*roc_curve(row.scores, row.is_positive), lw=1.4, label=row.title + area)
        axis.set(title=test.title, xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="lower right", title="trained on (AUC)", title_fontsize=7)
    figure.tight_layout()
    return png(figure)
