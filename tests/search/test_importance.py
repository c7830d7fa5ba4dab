"""How much each key decides."""

import itertools

from voxfleet.search.importance import importance
from voxfleet.search.trials import Trial


def trials(score):
    combinations = itertools.product([1, 2, 3, 4], [[2, 2, 2], None, [4, 4, 4]], [0, 1])
    return [
        Trial(number=n, proposal=n, keys={"a": a, "b": b, "c": c}, target=1, scores={1: score(a, b, c)})
        for n, (a, b, c) in enumerate(combinations)
    ]


def test_the_key_that_decides_is_found_of_numbers_and_of_categories():
    for score, key in ((lambda a, b, c: a + 0.05 * c, "a"), (lambda a, b, c: 3 * (b is None) + 0.05 * c, "b")):
        found = importance(trials(score), ["a", "b", "c"], 1)
        assert max(found, key=found.get) == key
        assert found[key] > 0.8
        assert abs(sum(found.values()) - 1) < 1e-6


def test_nothing_is_said_where_nothing_can_be():
    assert importance(trials(lambda a, b, c: 1.0), ["a", "b", "c"], 1) == {}
    assert importance(trials(lambda a, b, c: a)[:3], ["a", "b", "c"], 1) == {}
    assert importance(trials(lambda a, b, c: a), ["a", "b", "c"], 3) == {}
