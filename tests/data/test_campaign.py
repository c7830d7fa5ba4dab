"""Campaigns: what expands from a request, and where each sample is made."""

import pytest

from voxfleet.data.campaign import CampaignConfig, expand, units

CLASSES = ("HC", "TLE")


def samples(number, seed=0):
    return expand(CampaignConfig(samples=number, seed=seed), CLASSES)


def test_a_larger_campaign_begins_with_a_smaller_one():
    larger = {sample.sample_id: sample for sample in samples(7)}
    assert all(larger[sample.sample_id] == sample for sample in samples(3))
    assert len(larger) == 14


@pytest.mark.parametrize("missing", [range(9), [0, 3, 4, 8], [5]])
def test_a_sample_keeps_its_class_and_place_whichever_are_missing(missing):
    wanted = [sample for sample in samples(9) if sample.index in missing]
    made = units(wanted, 4)
    assert [row["index"] for unit in made.values() for row in unit] == [sample.index for sample in wanted]
    for unit in made.values():
        assert len({(row["label"], row["index"] // 4) for row in unit}) == 1


def test_seeds_differ_by_class_index_and_base_seed():
    assert len({sample.seed for sample in samples(20) + samples(20, seed=1)}) == 80
