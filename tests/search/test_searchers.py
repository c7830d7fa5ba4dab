"""What is proposed: a function of the space, the seed, the number, and the trials so far."""

import math
from collections import Counter

import pytest

from voxfleet.search.searchers import grid, random, tpe
from voxfleet.search.space import combinations, read_space
from voxfleet.search.trials import Trial

MIXED = read_space(
    {
        "kind": {"choice": ["a", "b"]},
        "depth": {"grid": [1, 2, 3]},
        "only_b": {"integer": [1, 100], "when": {"kind": ["b"]}},
        "lr": {"loguniform": [1e-4, 1e-2]},
    }
)


def trial(number, keys, score=None, reason=""):
    return Trial(
        number=number, proposal=number, keys=keys, target=1, scores={} if score is None else {1: score}, reason=reason
    )


@pytest.mark.parametrize("searcher", [random, tpe])
def test_a_proposal_is_the_same_for_a_seed_and_has_the_keys_that_are_on(searcher):
    found = [searcher(MIXED, 7, number, []) for number in range(60)]
    assert found == [searcher(MIXED, 7, number, []) for number in range(60)]
    assert found != [searcher(MIXED, 8, number, []) for number in range(60)]
    assert [keys["depth"] for keys in found] == [1, 2, 3] * 20  # each as often, in turn
    assert all(("only_b" in keys) == (keys["kind"] == "b") for keys in found)
    assert all(1e-4 <= keys["lr"] <= 1e-2 for keys in found)
    assert min(Counter(keys["kind"] for keys in found).values()) > 15


def test_grid_goes_through_all_and_ends():
    space = read_space({"a": {"choice": [1, 2]}, "b": {"integer": [1, 3]}})
    assert [grid(space, 0, number, []) for number in range(7)] == [*combinations(space), None]


def test_tpe_learns_from_scores_and_is_told_of_failures_and_of_those_that_run():
    """Of a bowl, its later proposals lie nearer to the bottom than random ones."""
    space = read_space({"x": {"uniform": [-1.0, 1.0]}, "y": {"uniform": [-1.0, 1.0]}})

    def distance(keys):
        return math.hypot(keys["x"] - 0.6, keys["y"] + 0.3)

    trials = []
    for number in range(50):
        keys = tpe(space, 0, number, trials)
        trials.append(trial(number, keys, distance(keys), reason="out of memory" if number % 10 == 9 else ""))
    late = [distance(t.keys) for t in trials[30:]]
    drawn = [distance(random(space, 0, number, [])) for number in range(20)]
    assert sorted(late)[10] < 0.7 * sorted(drawn)[10]
    assert min(late) < 0.1
    running = trial(50, tpe(space, 0, 50, trials))
    assert tpe(space, 0, 50, [*trials, running]) != running.keys
