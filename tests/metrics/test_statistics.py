"""Bootstrap, AUC, DeLong's test, effect sizes and proportions against known answers."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from voxfleet.metrics.statistics import auc, auc_interval, bootstrap, delong, effect_size, wilson


def weighted_mean(values):
    return lambda weights: float(weights @ values / weights.sum())


def test_the_bootstrap_of_a_mean_covers_it_about_as_often_as_it_says():
    rng, covered, widths = np.random.default_rng(0), 0, []
    for trial in range(200):
        interval = bootstrap(weighted_mean(rng.normal(3, 2, 40)), np.arange(40), repeats=200, seed=trial)
        covered += interval.low <= 3 <= interval.high
        widths.append(interval.high - interval.low)
    assert 0.90 <= covered / 200 <= 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / math.sqrt(40), rel=0.1)


def test_the_bootstrap_is_decided_by_its_seed():
    values = np.random.default_rng(0).normal(size=30)
    first, again, other = (bootstrap(weighted_mean(values), np.arange(30), repeats=50, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert first.value == pytest.approx(values.mean())
    assert first.n == 30


def test_two_samples_are_resampled_by_themselves_and_subjects_as_a_whole():
    seen = []

    def statistic(real, synthetic):
        seen.append((real, synthetic))
        return float(real @ [0, 1, 2, 3, 4, 5] - synthetic.sum())

    interval = bootstrap(statistic, ["a", "b", "a", "c", "c", "c"], [7, 9], repeats=40)
    assert interval.n == 5
    for real, synthetic in seen:
        assert real[0] == real[2]
        assert real[3] == real[4] == real[5]
        assert real[[0, 1, 3]].sum() == 3
        assert synthetic.sum() == 2
    assert any(real[0] != synthetic[0] for real, synthetic in seen)
    assert seen[0][0].tolist() == [1] * 6


def test_recentring_takes_the_bias_of_duplicates_away():
    rows = np.random.default_rng(0).normal(size=(25, 40))

    def squared_mean(weights):  # 40 / 25 for the sample, twice that for its resamples
        return float(np.square(weights @ rows / weights.sum()).sum())

    plain = bootstrap(squared_mean, np.arange(25), repeats=300)
    moved = bootstrap(squared_mean, np.arange(25), repeats=300, recentre=True)
    assert plain.low > plain.value
    assert moved.low < moved.value < moved.high
    assert moved.high - moved.low == pytest.approx(plain.high - plain.low)


def test_the_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(ValueError, match="at least one of each"):
        bootstrap(lambda: 0.0)
    with pytest.raises(ValueError, match="0 repeats"):
        bootstrap(lambda w: 0.0, [1], repeats=0)
    with pytest.raises(ValueError, match="the subject of each row"):
        bootstrap(lambda w: 0.0, [])
    with pytest.raises(ValueError, match="make each class a sample of its own"):
        bootstrap(lambda w: 1.0 if w[0] else math.nan, np.arange(3))


def scored(n=60, gain=1.0, seed=0):
    """Labels (n,), two correlated sets of scores with ties, (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    common = rng.normal(size=n) + gain * labels
    return labels, np.round(common + 0.5 * rng.normal(size=n), 1), np.round(0.6 * common + rng.normal(size=n), 1)


def test_auc_is_the_mann_whitney_statistic():
    labels, scores, _ = scored()
    u = mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert auc(scores, labels) == pytest.approx(u / (labels.sum() * (~labels).sum()), abs=1e-12)
    assert auc([1, 1, 1], [0, 1, 0]) == 0.5
    assert auc([1, 2, 3], [0, 0, 1]) == 1
    assert auc([1, 2, 3], [1, 1, 0]) == 0


def literal_delong(scores, labels):
    """AUCs (2,) and their covariance (2, 2) by equations 4 and 5 of DeLong et al., comparing all pairs."""
    positive, negative = np.asarray(scores)[:, labels == 1], np.asarray(scores)[:, labels == 0]
    pairs = np.sign(positive[:, :, None] - negative[:, None, :]) / 2 + 0.5
    covariance = np.cov(pairs.mean(axis=2)) / positive.shape[1] + np.cov(pairs.mean(axis=1)) / negative.shape[1]
    return pairs.mean(axis=(1, 2)), covariance


@pytest.mark.parametrize("seed", range(3))
def test_delong_is_that_of_the_paper(seed):
    labels, a, b = scored(seed=seed)
    areas, covariance = literal_delong([a, b], labels)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference, p_value = delong(a, b, labels)
    assert difference.value == pytest.approx(areas[0] - areas[1])
    assert difference.high - difference.value == pytest.approx(norm.ppf(0.975) * error)
    assert difference.value - difference.low == pytest.approx(norm.ppf(0.975) * error)
    assert p_value == pytest.approx(2 * norm.sf(abs(areas[0] - areas[1]) / error))
    logit = math.log(areas[0] / (1 - areas[0]))
    reach = norm.ppf(0.975) * math.sqrt(covariance[0, 0]) / (areas[0] * (1 - areas[0]))
    interval = auc_interval(a, labels)
    assert interval.value == pytest.approx(areas[0])
    assert interval.low == pytest.approx(1 / (1 + math.exp(reach - logit)))
    assert interval.high == pytest.approx(1 / (1 + math.exp(-reach - logit)))
    assert interval.n == 60


def test_delong_by_hand():
    # pairs won by a: 3 of 4; share of negatives below each positive 1, 1/2, of positives above each negative 1/2, 1
    difference, p_value = delong([3, 1, 2, 0], [3, 2, 1, 0], [1, 1, 0, 0])
    assert difference.value == -0.25
    assert difference.high == pytest.approx(-0.25 + 1.959964 * math.sqrt(0.125))
    assert p_value == pytest.approx(0.479500, abs=1e-6)
    assert delong([3, 1, 2, 0], [3, 1, 2, 0], [1, 1, 0, 0])[1] == 1
    assert delong([3, 2, 1, 0], [0, 1, 2, 3], [1, 1, 0, 0])[1] == 0


def test_complete_separation_is_not_certainty():
    labels = [1] * 10 + [0] * 10
    interval = auc_interval(np.array(labels) * 1.0, labels)
    assert (interval.value, interval.high) == (1, 1)
    low, others = interval.low, 9
    error = math.sqrt(low * (1 - low) * (1 + others * ((1 - low) / (2 - low) + low / (1 + low))) / 100)
    assert (1 - low) / error == pytest.approx(1.959964, abs=1e-5)
    mirrored = auc_interval(-np.array(labels), labels)
    assert (mirrored.low, mirrored.high) == (0, pytest.approx(1 - low))
    useless = auc_interval(np.zeros(20), labels)
    assert useless.low < useless.value == 0.5 < useless.high


def test_the_interval_of_an_auc_covers_it_about_as_often_as_it_says():
    truth, rng = norm.cdf(1.5 / math.sqrt(2)), np.random.default_rng(0)
    labels, covered = np.arange(40) % 2, 0
    for _ in range(400):
        interval = auc_interval(rng.normal(size=40) + 1.5 * labels, labels)
        covered += interval.low <= truth <= interval.high
    assert 0.925 <= covered / 400 <= 0.98


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([1, 2], [1], "one of each for each row"),
        ([[1, 2]], [[1, 0]], "one of each for each row"),
        ([1, np.nan, 3], [1, 0, 0], "not finite"),
        ([1, 2, 3], [1, 0, 2], "neither 0 nor 1"),
        ([1, 2, 3], [1, 1, 1], "3 positives and 0 negatives"),
    ],
)
def test_auc_refuses_what_has_none(scores, labels, reason):
    for measure in (auc, auc_interval, lambda s, y: delong(s, s, y)):
        with pytest.raises(ValueError, match=reason):
            measure(scores, labels)


def test_a_variance_takes_two_of_each_class():
    with pytest.raises(ValueError, match="it takes 2 of each"):
        auc_interval([1, 2, 3], [1, 0, 0])


def test_effect_size_by_hand():
    # means 4 and 1, variances 4 and 1 over 2 and 2 degrees of freedom: d = 3 / sqrt(2.5), correction 1 - 3 / 15
    g = 0.8 * 3 / math.sqrt(2.5)
    reach = 1.959964 * math.sqrt(6 / 9 + g**2 / 12)
    interval = effect_size([2, 4, 6], [0, 1, 2])
    assert interval.value == pytest.approx(g)
    assert (interval.low, interval.high) == (pytest.approx(g - reach), pytest.approx(g + reach))
    assert interval.n == 6
    assert effect_size([0, 1, 2], [2, 4, 6]).value == pytest.approx(-g)


def test_effect_size_is_unbiased_and_covers():
    rng = np.random.default_rng(0)
    found = [effect_size(rng.normal(2, 1, 8), rng.normal(0, 1, 12)) for _ in range(600)]
    assert np.mean([interval.value for interval in found]) == pytest.approx(2, abs=0.06)
    assert 0.93 <= np.mean([interval.low <= 2 <= interval.high for interval in found]) <= 0.98


def test_effect_size_refuses_what_has_none():
    for bad in ([1], [1, np.nan], [[1, 2], [3, 4]]):
        with pytest.raises(ValueError, match="two or more finite values"):
            effect_size([1, 2], bad)
    with pytest.raises(ValueError, match="needs some that vary"):
        effect_size([1, 1], [2, 2])


def test_wilson_by_hand():
    # 8 of 10: (0.8 + z2 / 20 +- z sqrt(0.016 + z2 / 400)) / (1 + z2 / 10)
    interval = wilson(8, 10)
    assert (interval.value, interval.n) == (0.8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.490162, abs=1e-6), pytest.approx(0.943318, abs=1e-6))
    assert wilson(0, 10).low == 0
    assert wilson(0, 10).high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    assert wilson(10, 10).high == 1


@pytest.mark.parametrize("counts", [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_proportion(counts):
    with pytest.raises(ValueError, match="from none to all"):
        wilson(*counts)


def test_wilson_holds_the_proportions_that_a_score_test_does_not_reject():
    for successes, n in itertools.product((3, 7), (10, 50)):
        interval = wilson(successes, n)
        for end in (interval.low, interval.high):
            assert abs(successes / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.959964, abs=1e-5)


def test_no_resample_is_of_one_subject_alone():
    distinct = []

    def statistic(weights):
        distinct.append(np.count_nonzero(weights))
        return 0.0

    bootstrap(statistic, np.arange(3), repeats=200)
    assert min(distinct) == 2
    bootstrap(statistic, np.zeros(4, int), repeats=2)  # there is no other
