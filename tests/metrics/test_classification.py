"""Figures of a classifier on predictions whose answer is known."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve as sklearn_roc_curve

from voxfleet.metrics.classification import agreement, classification_figures, roc_curve

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
P = np.array([0.1, 0.2, 0.3, 0.7, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95])
BOTH = np.stack([1 - P, P], axis=1)


def test_figures_are_those_counted_by_hand():
    figures = classification_figures(BOTH, LABELS, 1)
    assert figures["accuracy"].value == pytest.approx(0.8)
    assert figures["sensitivity"].value == pytest.approx(5 / 6)
    assert figures["specificity"].value == pytest.approx(3 / 4)
    assert figures["auc"].value == pytest.approx((24 - 2 - 0.5) / 24)
    assert {name: value.n for name, value in figures.items()} == {
        **{"auc": 10, "accuracy": 10},
        **{"sensitivity": 6, "specificity": 4},
    }
    other = classification_figures(BOTH, LABELS, 0)
    assert other["sensitivity"] == figures["specificity"]


def test_figures_that_the_classes_do_not_allow_are_left_out():
    assert set(classification_figures(BOTH[3:], LABELS[3:], 1)) == {"accuracy", "sensitivity", "specificity"}
    assert set(classification_figures(BOTH[4:], LABELS[4:], 1)) == {"accuracy", "sensitivity"}


def test_of_three_classes_the_others_are_negative():
    p = np.eye(3)[[0, 0, 1, 1, 2, 0]]
    figures = classification_figures(p, np.array([0, 0, 1, 0, 2, 2]), 2)
    assert figures["accuracy"].value == pytest.approx(4 / 6)
    assert (figures["sensitivity"].value, figures["specificity"].value) == (0.5, 1.0)


def test_swapped_labels_turn_agreement_around():
    right, swapped = agreement(BOTH, LABELS, ("HC", "TLE")), agreement(BOTH, 1 - LABELS, ("HC", "TLE"))
    assert right["all"].value == pytest.approx(0.8)
    assert swapped["all"].value == pytest.approx(0.2)
    assert (right["HC"].n, right["TLE"].n) == (4, 6)
    assert "TLE" not in agreement(BOTH[:4], LABELS[:4], ("HC", "TLE"))


def test_roc_curve_is_sklearns():
    ours, (false, true, _) = roc_curve(P, LABELS == 1), sklearn_roc_curve(LABELS, P, drop_intermediate=False)
    np.testing.assert_allclose(ours[0], false)
    np.testing.assert_allclose(ours[1], true)
