"""Whole searches without training: recorded learning curves are replayed."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from voxfleet.search.space import canonical
from voxfleet.search.study import SearchConfig, Study
from voxfleet.search.trials import ranked

RUNGS = (15, 46, 139)
SPACE = {
    "model.window_size": {"choice": [[1, 1, 1], [2, 2, 2], [2, 3, 2], [4, 4, 4], None]},
    "model.depth": {"choice": [2, 3, 4]},
}
# configs/tune/demo.yaml with searcher grid and scheduler none: a curve for each combination
CURVES = {canonical(entry["keys"]): entry for entry in json.loads(Path(__file__).with_name("curves.json").read_text())}


def curve(keys, epochs):
    """The recorded loss, in which windows hardly differ, made 5 % worse where the window is not [2, 2, 2]."""
    recorded = CURVES[canonical(keys)]
    handicap = 1.0 if keys["model.window_size"] == [2, 2, 2] else 1.05
    return handicap * float(np.interp(epochs, recorded["epochs"], recorded["val_loss"]))


def play(study, stop_after=None):
    """Train one after another; returns the epochs that were trained."""
    epochs = 0
    for number in itertools.count():
        if number == stop_after or (trial := study.next()) is None:
            return epochs
        epochs += trial.target - trial.reached
        study.scored(trial.number, curve(trial.keys, trial.target), {"fit_s": 1.0})


@pytest.fixture
def open_study(tmp_path):
    def make(name="study", rungs=RUNGS, network=canonical, **search):
        return Study(str(tmp_path / name), SearchConfig(**{"space": SPACE, **search}), rungs, network)

    return make


@pytest.mark.parametrize("seed", range(5))
def test_halving_finds_the_top_three_of_the_full_grid_with_less_than_half_of_its_steps(open_study, seed):
    full = open_study("full", rungs=(139,), searcher="grid", scheduler="none")
    everything = play(full)
    study = open_study("asha", seed=seed)
    spent = play(study)
    assert len({canonical(trial.keys) for trial in study.trials}) == len(full.trials) == 15
    assert [trial.keys for trial in ranked(study.trials)[:3]] == [trial.keys for trial in ranked(full.trials)[:3]]
    assert spent < everything / 2
    assert sum(trial.reached < RUNGS[-1] for trial in study.trials) >= 8


@pytest.mark.parametrize(("searcher", "every"), [("random", 1), ("grid", 1), ("tpe", 6)])
def test_a_search_that_is_killed_after_any_trial_goes_on_as_if_it_was_not(open_study, tmp_path, searcher, every):
    play(clean := open_study("clean", searcher=searcher, trials=12))
    for killed_after in range(1, 17, every):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        first = open_study("killed", searcher=searcher, trials=12)
        play(first, stop_after=killed_after)
        first.next()  # begun, and never scored
        play(again := open_study("killed", searcher=searcher, trials=12))
        assert again.trials == clean.trials


def test_a_running_trial_is_not_given_out_twice_and_another_process_takes_it_up_again(open_study):
    study = open_study(trials=3)
    begun = [study.next() for _ in range(3)]
    assert [trial.number for trial in begun] == [0, 1, 2]
    assert study.next() is None
    study.scored(2, 0.5, {})
    again = open_study(trials=3)
    assert [trial.number for trial in again.trials] == [0, 1, 2]
    assert [again.next(), again.next()] == begun[:2]


def test_combinations_of_no_use_and_those_that_are_the_same_are_passed_over(open_study):
    def network(keys):
        if keys["model.depth"] == 4:
            raise ValueError("too deep")
        return canonical({**keys, "model.window_size": keys["model.window_size"] == [2, 2, 2]})

    for searcher in ("random", "grid", "tpe"):
        study = open_study(searcher, network=network, searcher=searcher)
        play(study)
        assert len(study.trials) == 4
        assert {trial.keys["model.depth"] for trial in study.trials} == {2, 3}


def test_all_combinations_are_tried_although_they_are_drawn_at_random(open_study, monkeypatch):
    """Of many, the last one would hardly be drawn before the searcher is given up."""
    monkeypatch.setattr("voxfleet.search.study.TRIES", 2)
    study = open_study(rungs=(139,), scheduler="none")
    play(study)
    assert len({canonical(trial.keys) for trial in study.trials}) == len(study.trials) == 15


def test_a_failed_trial_keeps_its_reason_and_the_search_goes_on(open_study):
    study = open_study(trials=4)
    study.failed(study.next().number, "out of memory")
    play(study)
    assert [trial.reason for trial in open_study(trials=4).trials] == ["out of memory", "", "", ""]
    assert max(trial.reached for trial in study.trials) == RUNGS[-1]


def test_trials_that_cannot_be_trained_any_more_are_in_nobodys_way(open_study):
    """Asked again with other resources, under which a combination that was tried is impossible."""

    def network(keys):
        if keys["model.depth"] == 2:
            raise ValueError("too small a batch for so many workers")
        return canonical(keys)

    play(open_study(searcher="grid", trials=4))
    play(more := open_study(searcher="grid", trials=6, network=network))
    assert [trial.keys["model.depth"] for trial in more.trials] == [2, 3, 4, 2, 3, 4]


def test_more_trials_can_be_asked_for_later(open_study):
    play(open_study(trials=4))
    play(more := open_study(trials=6))
    assert len(more.trials) == 6


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"searcher": "magic"}, "searcher is 'magic'; it must be one of random, grid, tpe"),
        ({"scheduler": "hyperband"}, "must be one of asha, none"),
        ({"metric": "loss"}, "metric is 'loss'; it must be one of val_loss"),
        ({"metric": "val_distance"}, "needs samples; set quality_samples"),
        ({"quality_samples": 1}, "quality_samples is 1; it must be 0, or at least 2"),
        ({"trials": 0}, "trials is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"min_samples": 10, "max_samples": 5}, "min_samples is 10; it must be at most max_samples"),
        ({"space": {"optim.lr": {"uniform": [0.1, 1.0]}}}, "trials is null, but the space has no end"),
        ({"space": {"optim.lr": {"uniform": [0.1, 1.0]}}, "searcher": "grid", "trials": 3}, "optim.lr has a range"),
        ({"space": {"a": {"integer": [1, 5000]}}}, "space has 5000 combinations, more than 1000"),
    ],
)
def test_a_search_that_cannot_be_is_refused(search, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**search)
