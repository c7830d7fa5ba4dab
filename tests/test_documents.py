"""What a document of JSON may hold, and what is said where it holds something else."""

from typing import Any

import pytest

from voxfleet.documents import check_document, check_geometry
from voxfleet.errors import UserError

GEOMETRY = {"affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "spacing_mm": [1, 1, 1.5]}
GEOMETRY |= {"orientation": "RAS"}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (str, ["", "a"], [None, 1, ["a"]]),
        (int, [0, -3], [True, 1.0, "1", 1 << 63]),
        (float, [0, 0.5], [float("nan"), float("inf"), 10**400, True, "1"]),
        (bool, [True], [1, None]),
        (str | None, ["a", None], [1]),
        (list[int], [[], [1, 2]], [[1, "a"], {}, None]),
        (tuple[str, ...], [["a"]], [[1], "a"]),
        (dict[str, list[float]], [{}, {"a": [1]}], [{"a": 1}, []]),
        (Any, [None, [1]], []),
    ],
)
def test_values_are_of_their_kind(kind, good, bad):
    for value in good:
        check_document({"key": value}, {"key": kind}, "x.json", "make it again")
    for value in bad:
        with pytest.raises(UserError, match=r"^x\.json: key is .*, which it cannot be; make it again$"):
            check_document({"key": value}, {"key": kind}, "x.json", "make it again")


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match=r"^x\.json has no key b; make it again$"):
        check_document({"a": 1}, {"a": int, "b": int}, "x.json", "make it again")
    with pytest.raises(UserError, match=r"^x\.json is not a JSON object"):
        check_document([], {"a": int}, "x.json", "make it again")


def test_a_geometry_is_whole_or_may_lack():
    check_geometry(GEOMETRY, "x.json", "make it again")
    check_geometry({**GEOMETRY, "mirror_axis": None}, "x.json", "make it again")
    check_geometry({}, "x.json", "make it again", may_lack=True)
    for wrong in (
        {},
        {**GEOMETRY, "mirror_axis": "x"},
        {**GEOMETRY, "mirror_axis": 3},
        {**GEOMETRY, "spacing_mm": [1, 1]},
        {**GEOMETRY, "affine": [[1]]},
    ):
        with pytest.raises(UserError, match=r"^x\.json: geometry"):
            check_geometry(wrong, "x.json", "make it again")
