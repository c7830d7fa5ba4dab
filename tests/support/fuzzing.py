"""What fuzz tests share: spoiled documents and files, and the rule that nothing but one line reaches the user.

A test tries a few cases, and goes on with new ones for VOXFLEET_FUZZ_MINUTES where that is set.
"""

import contextlib
import copy
import io
import os
import time

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from voxfleet.cli import guarded

_CASES = 40  # at a time
MINUTES = "VOXFLEET_FUZZ_MINUTES"

TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", ".", "../../outside", "/outside", "a\nb", "null", "1e999", "s3://", "models:/", "\x00", "é"]),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.just(10**400),  # beyond what a float holds
    st.floats(),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)


@st.composite
def spoiled(draw, document):
    """``document`` (JSON) with one to three of its values replaced, removed, or joined by others."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        if not (places := list(_places(document))):
            return document
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if kind == "remove":
            del holder[key]
        elif kind == "replace":
            holder[key] = draw(VALUES)
        elif isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(VALUES)
        else:
            holder.insert(key, draw(VALUES))
    return document


def _places(document):
    """Each value that the document holds: what holds it, and under which key."""
    found = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(found):
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


@st.composite
def damaged(draw, data, *, ends=400):
    """``data`` (bytes) with some bytes changed, most of them within so many of its ends, or cut, or with more in it."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        near = min(ends, len(data)) - 1
        place = draw(
            st.one_of(
                st.integers(0, near), st.integers(len(data) - 1 - near, len(data) - 1), st.integers(0, len(data) - 1)
            )
        )
        kind = draw(st.sampled_from(["byte", "byte", "byte", "bytes", "cut", "more"]))
        if kind == "byte":
            data[place] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
        elif kind == "bytes":
            data[place : place + 4] = draw(st.binary(min_size=4, max_size=4))
        elif kind == "cut":
            del data[place : place + draw(st.sampled_from([1, 16, len(data)]))]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


def fuzz(cases, check, *, number=_CASES):
    """Call ``check`` with ``cases``: some that are always the same, and then others, for as long as there is time."""
    deadline = time.monotonic() + 60 * float(os.environ.get(MINUTES, "0"))
    start = 0
    while start == 0 or time.monotonic() < deadline:
        _run(cases, check, number, start)
        start += 1


def _run(cases, check, number, start):
    @seed(start)
    @settings(max_examples=number, suppress_health_check=list(HealthCheck))
    @given(cases)
    def once(case):
        check(case)

    once()


def ends_well(work):
    """Do ``work`` as the command line does: it may be refused, in one line; returns whether it was not."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = guarded(work)
    assert code in (0, 2), said.getvalue()
    if code == 2:
        (line,) = said.getvalue().splitlines()
        assert line.startswith("voxfleet: error: ")
    return code == 0
