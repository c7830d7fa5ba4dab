"""JSON that others may have written: whether it holds what is expected, before anything is done with it."""

import re
import sys
import types
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from voxfleet.errors import UserError

_MOST = 1 << 63  # what arrays hold


class Geometry(TypedDict):
    """Of volumes: ``affine`` (4 x 4, voxel to RAS mm), and ``mirror_axis``, see ``data.shards.Manifest``."""

    affine: list[list[float]]
    spacing_mm: list[float]
    orientation: str
    mirror_axis: NotRequired[int | None]


def check_document(document: Any, kinds: Mapping[str, Any], uri: str, remedy: str) -> None:
    """Make sure that ``document`` is an object in which the keys of ``kinds`` have values of these types.

    A type is one of JSON's, made of str, int, float (finite), bool, None, Any, list, tuple, dict, TypedDict and unions.

    Raises:
        UserError: names the first key that is missing or has another value; ``remedy`` says what to do.
    """
    if not isinstance(document, dict):
        raise UserError(f"{uri} is not a JSON object; {remedy}")
    for key, kind in kinds.items():
        if key not in document and get_origin(kind) is NotRequired:
            continue
        if key not in document:
            raise UserError(f"{uri} has no key {key}; {remedy}")
        if not _fits(document[key], kind):
            raise UserError(f"{uri}: {key} is {_short(document[key])}, which it cannot be; {remedy}")


def check_geometry(geometry: Any, uri: str, remedy: str, *, may_lack: bool = False) -> None:
    """Make sure that ``geometry`` is a ``Geometry``, or empty, where it may lack.

    Raises:
        UserError: names what is wrong.
    """
    if geometry or not may_lack:
        check_document(geometry, get_type_hints(Geometry, include_extras=True), f"{uri}: geometry", remedy)
        sizes = [len(row) for row in geometry["affine"]], len(geometry["spacing_mm"])
        if sizes != (4 * [4], 3):
            raise UserError(f"{uri}: geometry has an affine that is not 4 x 4, or not three sizes of voxels; {remedy}")
        if geometry.get("mirror_axis") not in (None, 0, 1, 2):
            raise UserError(f"{uri}: geometry has mirror_axis {geometry['mirror_axis']}, not 0, 1, 2 or null; {remedy}")


def check_suffix(suffix: str, uri: str, remedy: str) -> None:
    """Raises UserError if ``suffix``, with which names of files end, is not a BIDS suffix."""
    if not re.fullmatch("[A-Za-z0-9]+", suffix):
        raise UserError(f"{uri}: suffix {suffix!r} is not letters and digits; {remedy}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is one of ``kind``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is NotRequired:
        return _fits(value, *arguments)
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        return isinstance(value, dict) and all(
            _fits(value[key], hints[key]) if key in value else key in kind.__optional_keys__ for key in hints
        )
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, arguments[1]) for each in value.values())
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is int:
        return type(value) is int and abs(value) < _MOST
    return type(value) is (kind or types.NoneType)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
