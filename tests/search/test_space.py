"""Domains, conditions, and the combinations of a space."""

import math

import pytest

from voxfleet.search.space import combinations, read_space, size, words

SPACE = {
    "model.depth": {"choice": [2, 4]},
    "model.window_size": {"choice": [[2, 2, 2], None]},
    "model.global_every": {"integer": [1, 3], "when": {"model.window_size": [[2, 2, 2]]}},
}


def test_combinations_leave_out_what_a_condition_switches_off():
    space = read_space(SPACE)
    found = list(combinations(space))
    assert len(found) == 2 * (3 + 1)
    assert found[0] == {"model.depth": 2, "model.window_size": [2, 2, 2], "model.global_every": 1}
    assert [keys for keys in found if keys["model.window_size"] is None] == [
        {"model.depth": depth, "model.window_size": None} for depth in (2, 4)
    ]
    assert size(space) == 12
    assert size(read_space({**SPACE, "optim.lr": {"uniform": [0, 1]}})) == math.inf


@pytest.mark.parametrize(
    ("content", "ends", "middle"),
    [
        ({"choice": [3, 5]}, (3, 5), 5),
        ({"integer": [3, 6]}, (3, 6), 5),
        ({"uniform": [1.0, 3.0]}, (1.0, 3.0), 2.0),
        ({"loguniform": [1e-4, 1e-2]}, (1e-4, 1e-2), 1e-3),
    ],
)
def test_a_domain_is_even_over_its_values(content, ends, middle):
    (domain,) = read_space({"a": content})
    assert domain.at(0.0) == pytest.approx(ends[0])
    assert domain.at(1 - 1e-12) == pytest.approx(ends[1])
    assert domain.at(0.5) == pytest.approx(middle)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space is empty"),
        ({"a": {"choice": []}}, "space.a.choice is .*must be a list of values"),
        ({"a": {"integer": [8, 4]}}, "space.a.integer is .8, 4., an empty range"),
        ({"a": {"integer": [4, 4]}}, "an empty range"),
        ({"a": {"integer": [1.5, 4]}}, "must be two whole numbers"),
        ({"a": {"uniform": [1, 2, 3]}}, "must be two numbers"),
        ({"a": {"uniform": [0, math.inf]}}, "an empty range"),
        ({"a": {"loguniform": [0, 1]}}, "both must be above 0"),
        ({"a": {"chioce": [1]}}, "give one of choice, grid"),
        ({"a": {"choice": [1], "grid": [2]}}, "give one of choice, grid"),
        ({"a": 3}, "give one of choice, grid"),
        ({"a": {"choice": [1, 1]}}, "holds a value twice"),
        ({"a": {"choice": [1], "when": {"b": [1]}}}, "when names b, which must stand before it"),
        ({"b": {"choice": [1]}, "a": {"choice": [1], "when": {"b": 1}}}, "must be a list of values"),
        ({"b": {"choice": [1]}, "a": {"choice": [1], "when": [1]}}, "a.when is .1.; give keys and lists"),
        ({"b": {"choice": [1]}, "a": {"choice": [1], "when": {"b": [1, 2]}}}, "b is 2, which is no value of b"),
        ({"b": {"uniform": [1, 2]}, "a": {"choice": [1], "when": {"b": [1]}}}, "b is 1, which is no value of b"),
        ({3: {"choice": [1]}}, "space.3 is no key"),
    ],
)
def test_what_is_no_domain_is_named(space, message):
    with pytest.raises(ValueError, match=message):
        read_space(space)


def test_a_combination_for_people():
    assert words({"model.window_size": [2, 2, 2], "optim.lr": 0.1}) == "model.window_size [2, 2, 2], optim.lr 0.1"
