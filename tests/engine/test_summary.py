"""The summary of a verdict counts what is as wanted, and names what is farthest from it."""

import pytest

from voxfleet.engine.comparison import Figure, judged_where_taught
from voxfleet.engine.summary import distance, summary
from voxfleet.metrics.statistics import Interval
from voxfleet.report.page import Check


def figure(key, value, passed):
    return Figure(
        key=key,
        name=key,
        found=Interval(value, value - 3, value + 3, 9),
        floor=Interval(0, -4, 4, 9),
        passed=passed,
    )


def check(one):
    return Check(one.key, "")


FIGURES = [
    figure("fine", 1, True),
    figure("far", 20, False),
    figure("farther", -30, False),
    figure("shown", 50, None),
    Figure(key="impossible", name="", reason="one volume"),
]


def test_the_farthest_come_first():
    group = summary("Anatomy", FIGURES, check)
    assert (group.judged, group.passed, [one.name for one in group.farthest]) == (3, 1, ["farther", "far"])


def test_a_figure_that_is_needed_and_cannot_be_computed_is_not_as_wanted():
    group = summary("Gate", FIGURES, check, needed=True)
    assert (group.judged, group.passed) == (4, 1)
    assert [one.name for one in group.farthest] == ["farther", "far", "impossible"]


def test_distance_is_in_half_widths_of_both_intervals():
    assert distance(figure("far", 20, False)) == pytest.approx(20 / 5)
    assert distance(Figure(key="gate", name="", found=Interval(1, 1, 1, 1))) == float("inf")


@pytest.mark.parametrize(("low", "passed"), [(0.45, None), (0.5, None), (0.55, True)])
def test_what_real_people_do_not_teach_is_not_judged(low, passed):
    figure = Figure(
        key="transfer", name="AUC", found=Interval(0.6, 0.5, 0.7, 9), floor=Interval(0.6, low, 0.7, 9), passed=True
    )
    assert judged_where_taught(figure).passed is passed
