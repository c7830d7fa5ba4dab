"""Planted copies, collapse and leaks are found, and independent draws are not accused."""

import itertools

import numpy as np
import pytest

from voxfleet.metrics.neighbours import nearest
from voxfleet.metrics.privacy import (
    copies,
    coverage_of_subjects,
    distance_ratio,
    membership,
    nearness,
    preference,
)

D = 48  # features


def people(n, seed):
    return np.random.default_rng(seed).normal(size=(n, D))


@pytest.fixture(scope="module")
def train():
    return people(120, 0)


@pytest.fixture(scope="module")
def held(train):
    """Distance of 80 held-out people to the nearest training subject (80,), and which that is (80,)."""
    return nearest(people(80, 1), train)


@pytest.mark.parametrize("seed", range(5))
def test_independent_draws_are_not_accused(train, held, seed):
    distances, subjects = nearest(people(100, 10 + seed), train)
    near = nearness(distances, held[0])
    assert near.p_value > 0.01
    assert not copies(distances, held[0]).any()
    assert distance_ratio(distances, held[0], repeats=200).value == pytest.approx(1, abs=0.05)
    assert coverage_of_subjects(subjects, held[1], repeats=200).p_value > 0.01


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_planted_copies_are_caught(train, held, noise):
    synthetic = people(100, 2)
    synthetic[:8] = train[:8] + noise * people(8, 3)
    distances, subjects = nearest(synthetic, train)
    assert np.flatnonzero(copies(distances, held[0])).tolist() == list(range(8))
    assert subjects[:8].tolist() == list(range(8))
    near = nearness(distances, held[0], quantile=0)
    assert near.share.value >= 0.08
    assert near.p_value < 0.01
    assert near.expected == pytest.approx(1 / 81)


def test_a_set_that_is_nearer_to_training_everywhere_is_told(train, held):
    synthetic = 0.5 * train[:100] + 0.5 * people(100, 4)
    distances, _ = nearest(synthetic, train)
    assert nearness(distances, held[0]).p_value < 1e-6
    assert distance_ratio(distances, held[0], repeats=200).high < 0.8


def test_duplicates_within_the_set_are_told(held):
    usual, _ = nearest(people(80, 5))
    synthetic = people(80, 6)
    assert not copies(nearest(synthetic)[0], usual).any()
    synthetic[40:44] = synthetic[:4] + 0.1 * people(4, 7)
    found = copies(nearest(synthetic)[0], usual)
    assert np.flatnonzero(found).tolist() == [0, 1, 2, 3, 40, 41, 42, 43]


@pytest.mark.parametrize("quantile", [0, 0.5, 1])
def test_the_p_value_is_the_share_of_all_orders(quantile):
    """Were synthetic samples new people, each order of the n + m distances would be as likely."""
    n, m = 3, 4
    counts = []
    for chosen in itertools.combinations(range(n + m), n):
        reference = [value for value in range(n + m) if value not in chosen]
        counts.append((nearness(chosen, reference, quantile).share.value * n, chosen, reference))
    every = np.array([count for count, _, _ in counts])
    for count, chosen, reference in counts:
        near = nearness(chosen, reference, quantile)
        assert near.p_value == pytest.approx((every >= count).mean())
        assert near.expected == pytest.approx(every.mean() / n)
        assert near.limit == sorted(reference)[max(1, int(quantile * m)) - 1]


def test_the_ratio_is_of_medians():
    ratio = distance_ratio([1, 2, 9], [4, 4, 5], repeats=50)
    assert (ratio.value, ratio.n) == (0.5, 6)
    assert ratio.low < 0.5 < ratio.high
    assert distance_ratio([1, 1], [4, 4, 5], repeats=50).low == pytest.approx(1 / 5)  # those held out vary as well


def test_a_copy_is_told_by_the_nearest_of_the_reference():
    assert copies([0.9, 1.1, 4], [2, 10, 10]).tolist() == [True, False, False]
    assert copies([0.9, 1.1, 4], [2, 10, 10], factor=1).tolist() == [True, True, False]


def test_a_collapse_covers_few_subjects(train, held):
    near_one = train[3] + 0.5 * people(300, 8)
    mixed = np.concatenate([near_one, people(60, 9)])
    _, subjects = nearest(mixed, train)
    coverage = coverage_of_subjects(subjects, held[1], repeats=200)
    assert coverage.draws == 80
    assert coverage.distinct == len(set(subjects.tolist()))
    assert coverage.synthetic < 0.5 * coverage.real
    assert coverage.real == len(set(held[1].tolist()))
    assert coverage.p_value == pytest.approx(1 / 201)


def test_coverage_is_the_mean_over_all_subsets():
    synthetic, real = ["a", "a", "b", "c", "a", "d"], ["x", "a", "y"]
    subsets = list(itertools.combinations(synthetic, 3))
    coverage = coverage_of_subjects(synthetic, real, repeats=10)
    assert coverage.synthetic == pytest.approx(np.mean([len(set(subset)) for subset in subsets]))
    assert (coverage.distinct, coverage.draws, coverage.real) == (4, 3, 3)
    same = coverage_of_subjects([1, 1], [1], repeats=10)
    assert (same.synthetic, same.real, same.p_value) == (1, 1, 1)


def test_coverage_is_decided_by_its_seed():
    synthetic, real = np.arange(40) % 9, np.arange(30) % 13
    first, again, other = (coverage_of_subjects(synthetic, real, repeats=200, seed=s).p_value for s in (0, 0, 1))
    assert first == again
    assert first == pytest.approx(other, abs=0.1)


def test_membership_is_told_only_where_the_set_leaks(train):
    outside = people(80, 1)

    def attack(synthetic):
        return membership(nearest(train, synthetic)[0], nearest(outside, synthetic)[0])

    independent = attack(people(100, 2))
    assert independent.low < 0.5 < independent.high
    assert independent.n == 200
    copied = attack(train)
    assert copied.value == 1
    assert copied.low > 0.95
    assert attack(train + 0.5 * people(120, 3)).low > 0.9


@pytest.mark.parametrize("bad", [[], [[1.0]], [1, np.nan], [-1, 2]])
def test_what_is_no_distance_is_refused(bad):
    for measure in (nearness, copies, distance_ratio, membership):
        for pair in ((bad, [1, 2]), ([1, 2], bad)):
            with pytest.raises(ValueError, match="distance"):
                measure(*pair)


def test_limits_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="quantile is"):
        nearness([1], [1], quantile=1.5)
    for factor in (0, 1.1):
        with pytest.raises(ValueError, match="factor is"):
            copies([1], [1], factor=factor)
    with pytest.raises(ValueError, match="remove the duplicate"):
        copies([1], [0, 1])
    with pytest.raises(ValueError, match="split the cohort anew"):
        distance_ratio([1], [0, 0, 1])
    for pair in (([], [1]), ([1], []), ([[1]], [1])):
        with pytest.raises(ValueError, match="subjects are"):
            coverage_of_subjects(*pair)


def far(samples, people, blur=0.0):
    """Distances of samples, drawn to the mean, to people."""
    return np.linalg.norm((1 - blur) * samples[:, None] - people, axis=2)


@pytest.mark.parametrize("blur", [0, 0.8])
def test_new_samples_prefer_nobody_however_blurred_they_are(blur):
    alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        training, held_out, new = (rng.standard_normal((n, 20)) for n in (60, 25, 100))
        alarms += preference(far(new, training, blur), far(new, held_out, blur), repeats=100).p_value < 0.05
    assert alarms <= 3


@pytest.mark.parametrize("blur", [0, 0.5])
def test_samples_made_of_training_people_prefer_them(blur):
    rng = np.random.default_rng(0)
    training, held_out = (rng.standard_normal((n, 20)) for n in (60, 25))
    made = training[rng.integers(60, size=200)] + 0.5 * rng.standard_normal((200, 20))
    found = preference(far(made, training, blur), far(made, held_out, blur))
    assert found.share > 0.6
    assert found.p_value < 0.01


def test_ties_are_no_preference():
    found = preference(np.ones((3, 4)), np.ones((3, 5)), repeats=10)
    assert (found.share, found.p_value) == (0.5, 1.0)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3,), (3, 4)), ((3, 0), (3, 4))])
def test_distances_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"give \(n, m\) and \(n, k\)"):
        preference(*(np.ones(shape) for shape in shapes))
