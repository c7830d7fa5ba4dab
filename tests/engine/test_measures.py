"""Pieces of an evaluation: named by all that their figures follow from, and the same when a campaign has grown."""

import dataclasses

import numpy as np
import pytest

from voxfleet.data.sets import VolumeSet
from voxfleet.engine.measures import AT_ONCE, units


def images(hc, tle):
    """A set of so many images of each class, whose contents are their names."""
    names = np.array([f"syn-HC-{i}" for i in range(hc)] + [f"syn-TLE-{i}" for i in range(tle)])
    labels = np.repeat([0, 1], [hc, tle])
    parts = np.array([f"{name}.nii.gz" for name in names])
    kept = {"subjects": names, "labels": labels, "splits": np.full(len(names), "synthetic"), "affine": None}
    return VolumeSet("there", "", ("HC", "TLE"), names, contents=np.array(names), parts=parts, **kept)


def test_a_campaign_that_grew_has_the_pieces_that_it_had_and_each_row_once():
    before, after = units(images(32, 20), "basis"), units(images(50, 40), "basis")
    assert sum(len(rows) == AT_ONCE for rows in before.values()) == 3
    assert len(before.keys() & after.keys()) == 3  # but for the one that was not full
    assert [row for rows in after.values() for row in rows] == list(range(90))


def test_mixed_classes_are_cut_as_they_stand():
    mixed = dataclasses.replace(images(20, 20), labels=np.arange(40) % 2)
    assert [len(rows) for rows in units(mixed, "basis").values()] == [16, 16, 8]


@pytest.mark.parametrize("what", ["basis", "contents", "names", "maps"])
def test_whatever_figures_follow_from_names_a_piece(what):
    volumes = images(3, 0)
    if what == "basis":
        other = units(volumes, "another")
    elif what == "maps":
        other = units(volumes, "basis", {"syn-HC-1": "a hash"})
        assert other.keys() != units(volumes, "basis", {"syn-HC-1": "another"}).keys()
    else:
        other = units(dataclasses.replace(volumes, **{what: np.array(["a", "b", "c"])}), "basis")
    assert other.keys().isdisjoint(units(volumes, "basis"))
