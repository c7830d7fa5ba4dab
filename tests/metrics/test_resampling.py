"""Figures that compare two sets at one size, with an interval and what real sets give."""

import numpy as np
import pytest

from voxfleet.metrics.resampling import Pool, compare, half_and_half

_REPEATS = 100


def pool_of(real, synthetic):
    n = real + synthetic
    return Pool(np.arange(n), np.arange(real), np.arange(real, n))


def mean_difference(values):
    return lambda a, b: float(abs(b @ values / b.sum() - a @ values / a.sum()))


def compared(values, pool):
    return compare(mean_difference(values), pool, repeats=_REPEATS, seed=0)


def test_a_set_like_the_real_one_lies_on_the_floor_and_another_above():
    rng = np.random.default_rng(0)
    pool = pool_of(80, 40)
    values = rng.standard_normal(120)
    same = compared(values, pool)
    other = compared(values + 2 * (np.arange(120) >= 80), pool)
    assert same.found.n == same.floor.n == 40
    assert same.found.low <= same.floor.high
    assert other.found.low > 2 * other.floor.high
    assert other.found.low < other.found.value < other.found.high
    assert other.found.value == pytest.approx(2, abs=0.4)
    assert same.floor == other.floor


def test_both_are_compared_at_the_size_of_half_the_real_set():
    assert pool_of(30, 500).n == 15
    assert pool_of(500, 30).n == 30
    drawn = []

    def distance(a, b):
        drawn.append((a.sum(), b.sum()))
        return 0.0

    compare(distance, pool_of(30, 50), repeats=20, seed=0)
    assert drawn[:40] == [(15, 15)] * 40  # values and halves; then the bootstrap, of all
    assert set(drawn[40:]) == {(30, 50)}


def test_what_copies_would_change_is_drawn_without_them():
    drawn = []

    def distance(a, b):
        drawn.append((a.max(), b.max(), a.sum(), b.sum()))
        return float(len(drawn))

    found = compare(distance, pool_of(40, 21), repeats=20, seed=0, with_copies=False)
    assert drawn == [(1, 1, 10, 10)] * 40
    assert found.found.value == np.mean(np.arange(1, 21))
    assert found.found.low < 2 < 19 < found.found.high
    assert found.floor.value == np.mean(np.arange(21, 41))


def test_the_spread_of_halves_is_that_of_the_whole():
    rng, ends = np.random.default_rng(0), []
    pool = pool_of(200, 100)
    for _ in range(40):
        values = rng.standard_normal(300)
        found = compare(
            mean_difference(values + 5 * (np.arange(300) >= 200)), pool, repeats=100, seed=0, with_copies=False
        )
        ends.append(found.found.low < 5 < found.found.high)
    assert np.mean(ends) > 0.85


def test_volumes_of_a_subject_are_drawn_together():
    subjects = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6])
    pool = Pool(subjects, np.arange(8), np.arange(8, 11))

    def distance(a, b):
        assert (a[:8:2] == a[1:8:2]).all()
        assert (b[:8:2] == b[1:8:2]).all()
        assert not (a * b).any()
        return 0.0

    compare(distance, pool, repeats=20, seed=0)


def test_a_class_of_the_pool_keeps_its_rows():
    pool = pool_of(6, 4).only(np.arange(10) % 2 == 0)
    assert pool.real.tolist() == [0, 2, 4]
    assert pool.synthetic.tolist() == [6, 8]


def test_halves_share_nobody():
    first, second = half_and_half(np.arange(10), 4, np.random.default_rng(0))
    assert len(set(first) | set(second)) == 8


def test_too_few_subjects_are_refused():
    with pytest.raises(ValueError, match="too few subjects: 1 a side"):
        compared(np.zeros(5), pool_of(3, 2))


def test_few_are_one_volume_each_of_different_subjects_of_both_sets():
    subjects = np.repeat(np.arange(30), 2)  # two volumes of each
    pool = Pool(subjects, np.arange(40), np.arange(40, 60))
    few = pool.few(8, seed=0)
    assert len(few.real) == len(few.synthetic) == 8
    assert set(few.real) <= set(range(40))
    assert set(few.synthetic) <= set(range(40, 60))
    assert len(np.unique(subjects[few.real])) == 8
    assert len(pool.few(15, seed=0).synthetic) == 10
    assert not np.array_equal(few.real, pool.few(8, seed=1).real)
