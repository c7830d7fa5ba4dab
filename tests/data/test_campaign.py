"""Campaigns: what is asked for, what is missing, in which batches and in which order it is drawn."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from voxfleet.data.campaign import SCHEMA, CampaignConfig, Plan, Queue, Sample, batches, counts, plan
from voxfleet.errors import UserError

CLASSES = ("HC", "TLE")


def ledger(*rows):
    """Rows of (class, index, attempt, reason)."""
    names = ("class", "index", "attempt", "reason")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=SCHEMA)


def plan_of(number, *rows, seed=0):
    return plan(CampaignConfig(samples=number, seed=seed), CLASSES, ledger(*rows))


def missing(a_plan, size=4, most=3):
    return [sample for batch in a_plan.missing(size, most) for sample in batch]


def row(sample, reason=""):
    return {"sample_id": sample.sample_id, "reason": reason}


def test_a_larger_campaign_begins_with_a_smaller_one():
    larger = {sample.sample_id: sample for sample in missing(plan_of(7))}
    assert all(larger[sample.sample_id] == sample for sample in missing(plan_of(3)))
    assert len(larger) == 14


def test_seeds_differ_by_class_index_attempt_and_base_seed():
    every = [*missing(plan_of(20)), *missing(plan_of(20, seed=1))]
    again = [sample.again() for sample in every]
    assert len({sample.seed for sample in [*every, *again]}) == 160


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("number", [1, 9, {"HC": 3, "TLE": 17}])
def test_what_is_missing_is_drawn_once_and_in_its_place(size, number):
    a_plan = plan_of(number, ("HC", 0, 0, ""), ("TLE", 0, 0, "dark"))
    every = list(a_plan.missing(size, 3))
    drawn = [(sample.class_name, sample.index) for batch in every for sample in batch]
    wanted = {(name, i) for name, kept in zip(CLASSES, a_plan.kept, strict=True) for i in range(len(kept))}
    assert sorted(drawn) == sorted(wanted - {("HC", 0)})
    for batch in every:
        assert len({sample.index % size for sample in batch}) == len(batch) <= size


def test_a_new_campaign_is_drawn_in_full_batches_of_one_class():
    every = list(plan_of(10).missing(4, 3))
    assert [len(batch) for batch in every] == [4, 4, 4, 4, 2, 2]
    assert all(len({sample.label for sample in batch}) == 1 for batch in every)


def test_few_samples_that_are_missing_share_batches():
    rest = [sample for sample in missing(plan_of(64)) if sample.index % 9 == 0]
    packed = batches(rest, 8)
    assert sorted(s.sample_id for batch in packed for s in batch) == sorted(s.sample_id for s in rest)
    assert len(packed) == max(Counter(sample.index % 8 for sample in rest).values())


def test_a_rejected_sample_goes_on_with_its_next_attempt_and_is_given_up_in_the_end():
    a_plan = plan_of(2, ("HC", 0, 0, "dark"), ("HC", 0, 1, "dark"), ("HC", 1, 0, "dark"), ("HC", 1, 1, ""))
    assert {sample.index: sample.attempt for sample in missing(a_plan) if sample.label == 0} == {0: 2}
    assert [sample.sample_id for sample in a_plan.exhausted(2)] == ["syn-HC-0000000"]
    assert [sample.label for sample in missing(a_plan, most=2)] == [1, 1]
    assert a_plan.done == 1
    assert a_plan.total == 4


def test_a_campaign_does_not_shrink():
    with pytest.raises(UserError, match=r"asks for 3 of class TLE, but sample 3 of it is there"):
        plan_of(3, ("TLE", 3, 0, ""))


def test_a_mixture_has_its_shares_and_loses_nothing_as_it_grows():
    before = (0, 0, 0)
    for number in range(1, 200):
        config = CampaignConfig(samples=number, mixture={"a": 3, "b": 1.7, "c": 0.4})
        now = counts(config, ("a", "b", "c"))
        assert sum(now) == number
        assert all(new >= old for new, old in zip(now, before, strict=True))
        before = now
    assert np.allclose(np.array(before) / 199, np.array([3, 1.7, 0.4]) / 5.1, atol=0.005)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"samples": {"FCD": 3}}, "campaign.samples names class 'FCD'; the model knows HC, TLE"),
        ({"mixture": {"FCD": 1.0}}, "campaign.mixture names class 'FCD'; the model knows HC, TLE"),
    ],
)
def test_a_class_that_the_model_does_not_know(keys, words):
    with pytest.raises(UserError, match=words):
        counts(CampaignConfig(**keys), CLASSES)


@pytest.mark.parametrize(
    "keys",
    [
        {"samples": -1},
        {"samples": 0},
        {"samples": {"HC": -1, "TLE": 5}},
        {"samples": {"HC": 1}, "mixture": {"HC": 1.0}},
        {"mixture": {"HC": -1.0, "TLE": 2.0}},
        {"mixture": {"HC": 0.0}},
        {"seed": -1},
    ],
)
def test_requests_that_mean_nothing(keys):
    with pytest.raises(ValueError, match=f"^({'|'.join(keys)}) is "):
        CampaignConfig(**keys)


def drained(queue, reject):
    """All units of a queue, whose batches come back as they are drawn; ``reject`` says what for."""
    units = []
    while (batch := queue.next()) is not None:
        unit = queue.decided(batch, [row(sample, reject(sample)) for sample in batch], None)
        units += [unit] if unit else []
    return units


def test_units_hold_every_attempt_once_and_are_named_by_their_first():
    def reject(sample):
        return "dark" if (sample.index + sample.attempt) % 5 == 0 else ""

    units = drained(Queue(plan_of(30).missing(4, 3), 4, 8, 3), reject)
    rows = [entry for unit in units for entry in unit.rows]
    assert sorted(entry["sample_id"] for entry in rows if not entry["reason"]) == sorted(
        sample.sample_id for sample in missing(plan_of(30))
    )
    assert sum(bool(entry["reason"]) for entry in rows) == 12
    assert len({unit.name for unit in units}) == len(units)
    assert units[0].name == "syn-HC-0000000.0"
    assert len(units[0].rows) >= 8


def test_a_sample_that_is_always_rejected_is_drawn_so_often_and_no_more():
    tries = Counter()

    def reject(sample):
        tries[sample.sample_id] += 1
        return "dark" if sample.sample_id == "syn-HC-0000001" else ""

    drained(Queue(plan_of(4).missing(4, 3), 4, 8, 3), reject)
    assert tries.pop("syn-HC-0000001") == 3
    assert set(tries.values()) == {1}


def test_a_rejected_sample_is_drawn_again_before_the_end_where_that_fills_a_batch():
    drawn = []

    def reject(sample):
        drawn.append(sample)
        return "dark" if sample.attempt == 0 and sample.index < 8 else ""

    drained(Queue(plan_of(100).missing(4, 3), 4, 8, 3), reject)
    first = next(number for number, sample in enumerate(drawn) if sample.attempt)
    assert first < 40
    assert len(drawn) == 216


def test_a_million_samples_are_planned_without_an_object_for_each():
    kept = np.ones(500_000, dtype=bool)
    kept[[7, 499_999]] = False
    a_plan = Plan(CLASSES, 0, (kept, kept), (np.zeros(500_000, dtype=np.int64),) * 2)
    assert missing(a_plan, size=8) == [Sample(label, CLASSES[label], i, 0) for i in (7, 499_999) for label in (0, 1)]
