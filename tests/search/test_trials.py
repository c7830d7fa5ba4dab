"""Who goes on, who is best."""

import itertools

import pytest

from voxfleet.search.trials import Trial, pareto, promotion, ranked, rungs_of, to_the_end


def trial(number, target, reason="", **scores):
    return Trial(
        number=number,
        proposal=number,
        keys={},
        target=target,
        scores={int(epochs[1:]): score for epochs, score in scores.items()},
        reason=reason,
    )


def test_of_nine_the_best_three_go_on_and_of_those_one():
    rungs = (1, 3, 9)
    trials = [trial(number, 1, e1=float(score)) for number, score in enumerate([5, 2, 9, 1, 8, 3, 7, 4, 6])]
    promoted = []
    while (chosen := promotion(trials, rungs, 3)) is not None:
        number, target = chosen
        promoted.append(chosen)
        scores = {f"e{epochs}": score for epochs, score in trials[number].scores.items()}
        trials[number] = trial(number, target, **scores, **{f"e{target}": trials[number].score - 0.5})
    assert promoted == [(3, 3), (1, 3), (5, 3), (3, 9)]
    assert [t.number for t in ranked(trials)][:4] == [3, 1, 5, 7]


def test_the_order_in_which_trials_arrive_does_not_decide():
    """One that came first, alone, is no better for it; one that was passed over goes on when there is room."""
    for order in itertools.permutations(range(4)):
        trials = [trial(number, 1, e1=float(score)) for number, score in enumerate(order)]
        assert promotion(trials, (1, 3), 3) == (order.index(0), 3)


def test_none_goes_on_while_the_others_are_not_scored_and_the_best_in_any_case():
    waiting = [trial(0, 1, e1=2.0), trial(1, 1, e1=1.0)]
    assert promotion([*waiting, trial(2, 1)], (1, 3), 3) is None
    assert promotion(waiting, (1, 3), 3) == (1, 3)  # though two are too few for a third of them
    assert promotion([trial(0, 3, e1=2.0, e3=1.0), trial(1, 1, e1=3.0)], (1, 3), 3) is None
    assert to_the_end(waiting, (3,), 3) is None


def test_a_trial_that_failed_leaves_its_place_to_another():
    trials = [trial(number, 1, e1=float(number)) for number in range(3)]
    assert promotion(trials, (1, 3), 3) == (0, 3)
    trials[0] = trial(0, 3, reason="nan", e1=0.0)
    assert promotion(trials, (1, 3), 3) == (1, 3)
    assert 0 not in [t.number for t in ranked(trials)]


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(5, 47, (5, 16, 47)), (1, 9, (1, 3, 9)), (4, 9, (9,)), (3, 9, (3, 9)), (9, 9, (9,)), (1, 1, (1,))],
)
def test_rungs_are_a_third_of_each_other(least, most, expected):
    assert rungs_of("asha", least, most, 3) == expected
    assert rungs_of("none", least, most, 3) == (most,)


def test_those_that_came_farther_stand_first_whatever_their_score():
    found = ranked([trial(0, 1, e1=0.1), trial(1, 3, e1=0.5, e3=0.4), trial(2, 3, e1=0.6, e3=0.3), trial(3, 1)])
    assert [t.number for t in found] == [2, 1, 0]


def test_the_front_is_what_nothing_beats():
    assert pareto([(1, 5), (2, 4), (2, 6), (3, 4), (1, 5)]) == [True, True, False, False, True]


def test_a_trial_is_the_same_after_it_was_written():
    one = trial(3, 9, e1=0.5, e3=0.25)
    assert Trial.read(one.document()) == one
    assert (one.reached, one.score, one.is_open) == (3, 0.25, True)
