"""Folds and regimes: by subject, stratified, disjoint, the test split apart."""

import numpy as np
import pytest

from voxfleet.data.folds import (
    NO_FOLD,
    REAL,
    SYNTHETIC,
    SYNTHETIC_ONLY,
    Regime,
    Table,
    deal_folds,
    draw_rows,
    folds_of,
    hold_out,
)
from voxfleet.errors import UserError

CLASSES = ("HC", "TLE")
SUBJECTS = np.array([f"s{i:02d}" for i in range(30) for _ in range(1 + i % 2)])  # every second has two images
LABELS = np.array([int(subject[1:]) % 3 == 0 for subject in SUBJECTS], dtype=int)


def table(synthetic=20):
    parts = np.where(np.isin(SUBJECTS, ["s00", "s01", "s02", "s03"]), "test", "train")
    folds = folds_of(SUBJECTS, LABELS, parts, 3, 0, CLASSES)
    names = np.array([f"x{i}" for i in range(synthetic)])
    return Table(
        CLASSES,
        np.concatenate([SUBJECTS, names]),
        np.concatenate([SUBJECTS, names]),
        np.concatenate([LABELS, np.arange(synthetic) % 2]),
        np.concatenate([parts, np.full(synthetic, SYNTHETIC)]),
        np.concatenate([folds, np.full(synthetic, NO_FOLD)]),
    )


def test_folds_are_by_subject_and_stratified():
    folds = deal_folds(SUBJECTS, LABELS, 4, (0,), CLASSES)
    of_subject = {subject: set(folds[subject == SUBJECTS]) for subject in SUBJECTS}
    assert all(len(found) == 1 for found in of_subject.values())
    people = {subject: found.pop() for subject, found in of_subject.items()}
    for mine in (SUBJECTS, SUBJECTS[LABELS == 0], SUBJECTS[LABELS == 1]):
        assert np.ptp(np.bincount([people[subject] for subject in set(mine)], minlength=4)) <= 1
    assert np.array_equal(folds, deal_folds(SUBJECTS, LABELS, 4, (0,), CLASSES))
    assert not np.array_equal(folds, deal_folds(SUBJECTS, LABELS, 4, (1,), CLASSES))
    order = np.random.default_rng(0).permutation(len(SUBJECTS))
    assert np.array_equal(folds[order], deal_folds(SUBJECTS[order], LABELS[order], 4, (0,), CLASSES))


def test_a_class_with_fewer_subjects_than_folds_is_refused():
    with pytest.raises(UserError, match="class TLE has 10 subjects for 11 folds; lower folds"):
        deal_folds(SUBJECTS, LABELS, 11, (0,), CLASSES)


def test_what_is_held_out_is_by_subject_and_of_each_class():
    held = hold_out(SUBJECTS, LABELS, 0.2, (0,))
    assert set(SUBJECTS[held]).isdisjoint(SUBJECTS[~held])
    assert [len(set(SUBJECTS[held & (label == LABELS)])) for label in (0, 1)] == [4, 2]
    few = np.array(["a", "b", "c"])
    assert hold_out(few, np.array([0, 1, 1]), 0.1, (0,)).sum() == 1  # the only one of a class is trained on


@pytest.mark.parametrize("regime", [REAL, SYNTHETIC_ONLY, Regime.mixed(25.0), Regime.mixed(50.0)], ids=lambda r: r.key)
def test_nothing_is_trained_on_that_is_tested_or_chooses(regime):
    whole = table()
    for fold in range(3):
        training, chooses, draws = whole.training(regime, fold, (0, 1), 0.2)
        people = [set(whole.subjects[rows]) for rows in (training, chooses, whole.in_fold(fold), whole.of("test"))]
        assert len(set().union(*people)) == sum(map(len, people))
        real, *_ = whole.training(REAL, fold, (0, 1), 0.2)
        assert draws == len(real)
        synthetic = np.count_nonzero(whole.parts[training] == SYNTHETIC)
        if regime.real:
            assert set(real) <= set(training)
            assert synthetic == pytest.approx(regime.percent / 100 * len(real), abs=1)
        else:
            assert synthetic == len(training) == 16
            assert len(chooses) == 4
        assert set(whole.labels[training]) == set(whole.labels[chooses]) == {0, 1}


def test_more_synthetic_volumes_are_these_and_others():
    labels = np.arange(40) % 2
    few, many = (set(draw_rows(labels, {0: n, 1: 2 * n}, (0,))) for n in (3, 9))
    assert few < many
    assert (len(few), len(many)) == (9, 27)


def test_too_few_synthetic_volumes_are_said():
    with pytest.raises(UserError, match=r"real \+ 500 % needs \d+ synthetic volumes of class HC, there are 10"):
        table().training(Regime.mixed(500.0), 0, (0, 0), 0.2)
