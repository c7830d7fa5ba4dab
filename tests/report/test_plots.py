"""Plots of an evaluation: what is drawn where."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

from voxfleet.metrics.statistics import Interval
from voxfleet.report import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, which are kept open for the test."""
    kept = []

    def png(figure):
        kept.append(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=40)
        return buffer.getvalue()

    monkeypatch.setattr(plots, "png", png)
    yield kept
    for figure in kept:
        plt.close(figure)


def dot(value, reach=1.0):
    return Interval(value, value - reach, value + reach, 9)


def test_sets_have_colours_of_their_own_and_classes_lines(drawn):
    rng = np.random.default_rng(0)
    labels = {"real": np.arange(20) % 2, "small": np.arange(12) % 2, "large": np.arange(8) % 2}
    values = {f"figure {i}, mL": {name: rng.random(len(of)) for name, of in labels.items()} for i in range(4)}
    values["figure 0, mL"]["small"][:2] = np.nan
    plots.distributions(values, labels, ("HC", "TLE"), "real")
    axis = drawn[0].axes[0]
    styles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.lines}
    assert len(set(styles.values())) == 6
    assert len({colour for colour, _ in styles.values()}) == 3
    assert styles["real, TLE"][0] == styles["real, HC"][0]
    assert axis.get_xlabel() == "figure 0, mL"
    small = next(line for line in axis.lines if line.get_label() == "small, HC")
    np.testing.assert_allclose(np.diff(small.get_ydata())[0], 1 / 5)  # of six, one is not finite


def test_distances_are_drawn_over_the_highest_of_real_sets_and_below_0_at_the_end(drawn):
    floor = {"made": Interval(0.1, -0.2, 0.5, 9)}
    rows = [plots.Row("far", {"made": dot(5)}, floor), plots.Row("none", {"made": dot(-1, 0.2)}, floor)]
    plots.against_floor(rows)
    axis = drawn[0].axes[0]
    dots = [(float(c[0].get_xdata()[0]), float(c[0].get_ydata()[0])) for c in axis.containers]
    assert dots == [(10, 0), (plots._NEAREST, 1)]
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["far", "none"]


def test_a_set_without_a_figure_leaves_its_place_empty(drawn):
    both = plots.Row("both", {"a": dot(1), "b": dot(2)}, {"a": dot(0), "b": dot(0)})
    one = plots.Row("one", {"b": dot(3)}, {"b": dot(0)})
    plots.forest([both, one], "g")
    dots = sorted(float(container[0].get_xdata()[0]) for container in drawn[0].axes[0].containers)
    assert dots == [0, 0, 1, 2, 3]
    plots.against_floor([both, one])
    assert len(drawn[1].axes[0].containers) == 3


def test_curves_stand_in_the_panel_of_their_name(drawn):
    curve = plots.Curve([-20.0, 0.0, 30.0], [dot(1), dot(4), dot(2)], [dot(0)] * 3)
    plots.along({"axial": {"a": curve, "b": curve}, "sagittal": {"a": curve}}, ["z, mm", "x, mm"], 3)
    first, second = drawn[0].axes
    assert (first.get_title(), first.get_xlabel(), len(first.lines)) == ("axial", "z, mm", 2)
    assert (second.get_xlabel(), len(second.lines)) == ("x, mm", 1)
    np.testing.assert_array_equal(first.lines[0].get_xydata(), [[-20, 1], [0, 4], [30, 2]])


def test_spectra_and_nearest_volumes_have_a_curve_for_each_set(drawn):
    power = {name: np.random.default_rng(0).random((5, 4)) for name in ("real", "made")}
    plots.spectra(np.arange(1, 5) / 100, power, "real")
    assert len(drawn[0].axes[0].lines) == 2
    assert "per mm" in drawn[0].axes[0].get_xlabel()
    plots.nearest(
        {"latents": {"made": np.arange(1.0, 4)}, "voxels": {"made": np.ones(3)}},
        dict.fromkeys(("latents", "voxels"), np.ones(2)),
    )
    assert [len(axis.lines) for axis in drawn[1].axes] == [2, 2]
