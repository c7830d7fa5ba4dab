"""Figures of a classifier on predictions whose answer is known."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_curve as sklearn_roc_curve

from voxfleet.metrics.classification import agreement, classification_figures, roc_curve, transfer_auc

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


def people(n, effect, rng):
    """Two measures, of which the first is ``effect`` standard deviations higher in the disease."""
    ill = np.arange(n) % 2 == 1
    return np.column_stack([3000 + 200 * (rng.standard_normal(n) + effect * ill), rng.standard_normal(n)]), ill


def test_what_transfers_is_the_effect_of_the_tested_set_by_the_direction_of_the_other():
    rng = np.random.default_rng(0)
    (real, ill), (made, wanted) = people(20_000, 1.0, rng), people(2_000, 1.0, rng)
    features, tested = np.concatenate([real, made]), np.arange(22_000) < 20_000

    def auc(labels):
        return transfer_auc(features, np.concatenate([ill, labels]), tested.astype(float), 1.0 - tested)

    assert auc(wanted) == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.01)
    assert auc(~wanted) == pytest.approx(1 - auc(wanted), abs=1e-6)
    with pytest.raises(ValueError, match="one class only"):
        auc(np.ones_like(wanted))


def test_weights_are_repetitions():
    rng = np.random.default_rng(1)
    features, ill = people(60, 1.0, rng)
    times = rng.integers(0, 3, 60)
    tested, trained = times * (np.arange(60) < 30), times * (np.arange(60) >= 30)
    rows = np.repeat(np.arange(60), times)
    one = np.ones(len(rows))
    repeated = transfer_auc(features[rows], ill[rows], one * (rows < 30), one * (rows >= 30))
    assert transfer_auc(features, ill, tested, trained) == pytest.approx(repeated, abs=1e-4)
