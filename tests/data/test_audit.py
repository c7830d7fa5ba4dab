"""The audit: which images are one and the same, and what is said about it."""

import dataclasses
import re

import numpy as np
import pytest
from scipy import ndimage

from voxfleet.data import audit
from voxfleet.data.audit import (
    AuditConfig,
    audit_columns,
    check_duplicates,
    descriptor,
    find_duplicates,
    fingerprint,
)
from voxfleet.errors import UserError

SHAPE = (24, 28, 24)
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")


def person(seed: int) -> np.ndarray:
    """A head that is mostly like all others: a common bright ellipsoid, and this person's smooth pattern in it."""
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in SHAPE), indexing="ij")
    inside = np.clip(4 * (1 - np.sqrt(sum(axis**2 for axis in axes))), 0, 1)
    pattern = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 2)
    return (inside * (0.6 + 0.15 * pattern / pattern.std())).astype(np.float32)


PEOPLE = [person(seed) for seed in range(len(NAMES))]


def row(name: str, array: np.ndarray, split: str = "train") -> dict:
    return {"subject_id": name, "split": split, "source": f"/data/{name}.nii.gz", **audit_columns(array)}


def cohort(*more: dict) -> list[dict]:
    return [*(row(name, array) for name, array in zip(NAMES, PEOPLE, strict=True)), *more]


def found(rows: list[dict], **config) -> list[tuple]:
    return [(d.kind, *d.subjects) for d in find_duplicates(rows, AuditConfig(**config))]


def test_two_people_are_not_one_though_all_heads_look_alike():
    assert np.corrcoef(PEOPLE[0].ravel(), PEOPLE[1].ravel())[0, 1] > 0.9
    assert found(cohort()) == []


def test_what_many_people_share_makes_none_of_them_duplicates():
    """Two scanners, each with a pattern of its own that is stronger than what tells people apart."""
    scanners = [person(100) - person(102), person(101) - person(103)]
    heads = [person(seed) + 1.5 * scanners[seed % 2] for seed in range(24)]
    rows = [row(f"sub-{seed}", head) for seed, head in enumerate(heads)]
    assert found([*rows, row("z", CHANGES["gamma"](np.clip(heads[0], 0, None)))]) == [("near", "sub-0", "z")]


def test_an_exact_copy_is_found_once_and_as_exact():
    (duplicate,) = find_duplicates(cohort(row("z", PEOPLE[2].copy(), "test")), AuditConfig())
    assert (duplicate.kind, duplicate.subjects, duplicate.splits) == ("exact", ("c", "z"), ("train", "test"))
    assert duplicate.sources == ("/data/c.nii.gz", "/data/z.nii.gz")
    assert duplicate.correlation == 1


CHANGES = {
    "rescaled": lambda head: 3 * head + 20,
    "gamma": lambda head: head**0.8,
    "shifted": lambda head: ndimage.shift(head, 0.25, order=1),
    "noisy": lambda head: head + 0.02 * np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32),
    "another grid": lambda head: ndimage.zoom(ndimage.zoom(head, 0.75, order=1), 1 / 0.75, order=1),
    "oblique grid": lambda head: ndimage.rotate(ndimage.rotate(head, 20, reshape=False), -20, reshape=False),
    "thick slices": lambda head: ndimage.zoom(
        head.reshape(24, 28, 12, 2).mean(axis=3), (1, 1, 2), order=1, mode="nearest", grid_mode=True
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_scan_saved_in_another_way_is_near(change):
    again = CHANGES[change](PEOPLE[4])
    assert again.shape == SHAPE
    rows = cohort(row("z", again))
    assert found(rows) == [("near", "e", "z")]
    assert found(rows, near=None) == []


def test_a_head_that_is_most_of_the_cohort_is_found(monkeypatch):
    """Whitening alone takes its pattern for what all have in common."""
    copies = [ndimage.shift(PEOPLE[0] ** gamma, 0.05, order=1) for gamma in np.linspace(0.85, 1.15, 16)]
    rows = cohort(*(row(f"z{number}", head) for number, head in enumerate(copies)))
    pairs = {("near", "a", f"z{number}") for number in range(16)}
    duplicates = found(rows)
    assert pairs <= set(duplicates)
    assert not {name for _, *subjects in duplicates for name in subjects} & set(NAMES[1:])  # nobody else is named
    monkeypatch.setattr(audit, "_FEW", 0)
    assert not pairs <= set(found(rows))


def test_images_of_one_subject_are_no_duplicates():
    assert found(cohort(row("a", PEOPLE[0]), row("a", PEOPLE[0] * 2))) == []


def test_the_nearest_come_first_and_chunks_change_nothing(monkeypatch):
    rows = cohort(row("y", CHANGES["another grid"](PEOPLE[1])), row("z", PEOPLE[6] * 2))
    whole = find_duplicates(rows, AuditConfig())
    assert [d.subjects for d in whole] == [("g", "z"), ("b", "y")]
    for chunk in (1, 3, 7):
        monkeypatch.setattr(audit, "_CHUNK", chunk)
        chunked = find_duplicates(rows, AuditConfig())
        assert [d.subjects for d in chunked] == [d.subjects for d in whole]
        np.testing.assert_allclose([d.correlation for d in chunked], [d.correlation for d in whole], atol=1e-6)


def test_three_copies_over_splits_are_all_named():
    rows = cohort(row("y", PEOPLE[0]), row("z", PEOPLE[0], "val"))
    assert found(rows) == [("exact", "a", "y"), ("exact", "a", "z")]


@pytest.mark.parametrize("shape", [(4, 8, 14, 8), (4, 28, 34, 28), (1, 3, 2, 5), (33, 17, 50), (16, 4, 4, 4)])
def test_latents_and_any_shape_give_a_small_descriptor(shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    vector = descriptor(array)
    assert vector.dtype == np.float32
    assert vector.ndim == 1
    assert 1 < vector.size <= 2048
    np.testing.assert_allclose(descriptor(5 * array + 1), vector, atol=1e-3)


def test_channels_of_latents_count_alike():
    """A channel of large numbers does not drown the others."""
    arrays = np.random.default_rng(0).standard_normal((8, 2, 8, 8, 8)).astype(np.float32)
    arrays[:, 1] *= 1000
    other = np.concatenate([arrays[:1, :1], arrays[1:2, 1:]], axis=1)[0]
    rows = [*(row(name, array) for name, array in zip(NAMES, arrays, strict=True)), row("z", other)]
    (duplicate, second) = find_duplicates(rows, AuditConfig(near=0.1))
    assert {duplicate.subjects, second.subjects} == {("a", "z"), ("b", "z")}
    assert abs(duplicate.correlation - second.correlation) < 0.2


def test_constant_arrays_and_tiny_cohorts_raise_nothing():
    flat = np.zeros(SHAPE, np.float32)
    assert found([row("a", flat), row("b", PEOPLE[0]), row("c", PEOPLE[1])]) == []
    assert found([row("a", PEOPLE[0]), row("b", PEOPLE[1])]) == []
    assert found([row("a", PEOPLE[0]), row("b", PEOPLE[0] * 2)]) == [("near", "a", "b")]
    assert found([row("a", PEOPLE[0])]) == found([]) == []


def test_a_fingerprint_is_of_numbers_and_shape():
    assert fingerprint(PEOPLE[0]) == fingerprint(np.asfortranarray(PEOPLE[0]))
    assert len({fingerprint(PEOPLE[0]), fingerprint(PEOPLE[1]), fingerprint(PEOPLE[0].reshape(-1))}) == 3


def test_a_pair_across_splits_is_an_error_unless_it_is_allowed():
    rows = cohort(row("y", PEOPLE[1] * 2), row("z", PEOPLE[0] * 2, "test"))
    duplicates = find_duplicates(rows, AuditConfig())
    with pytest.raises(UserError) as error:
        check_duplicates(duplicates, AuditConfig(), "work/volumes")
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "work/volumes: ",
        "(1 such pairs)",
        "a (train, /data/a.nii.gz) and z (test, /data/z.nii.gz)",
        "subject_id",
    ):
        assert part in message
    assert "audit.allow_across_splits" in message
    allowed = check_duplicates(duplicates, AuditConfig(allow_across_splits=True), "work/volumes")
    within = check_duplicates([d for d in duplicates if d.subjects == ("b", "y")], AuditConfig(), "work/volumes")
    assert allowed.startswith("the same image under two subject ids: 2 pairs, the first: ")
    assert within.startswith(
        "the same image under two subject ids: 1 pairs, the first: b (train, /data/b.nii.gz) and y ("
    )
    assert check_duplicates([], AuditConfig(), "work/volumes") == ""


def test_a_duplicate_is_a_plain_document():
    (duplicate,) = find_duplicates(cohort(row("z", PEOPLE[2])), AuditConfig())
    assert set(dataclasses.asdict(duplicate)) == {"kind", "subjects", "splits", "sources", "correlation"}


@pytest.mark.parametrize("near", [0.0, 1.0, -1.0, float("nan")])
def test_audit_config_names_key_and_value(near):
    with pytest.raises(ValueError, match=re.escape(f"near={near}")):
        AuditConfig(near=near)
