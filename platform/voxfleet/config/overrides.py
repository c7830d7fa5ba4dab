"""A configuration with some of its keys changed, and whether there are such keys and values."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from voxfleet.config.parsing import explain, parser_of

ConfigT = TypeVar("ConfigT")


def with_keys(config: ConfigT, keys: Mapping[str, Any]) -> ConfigT:
    """``config`` with dotted ``keys`` changed, all at once.

    Raises:
        ValueError: if the values do not go together; the message names the key.
    """
    nested: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for key, value in keys.items():
        name, _, rest = key.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            changes[name] = _frozen(value)
    for name, part in nested.items():
        try:
            changes[name] = with_keys(getattr(config, name), part)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from error
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def check_value(cls: type, job: str, required: Mapping[str, Any], key: str, value: Any) -> None:
    """Make sure that ``cls``, of which the ``required`` keys are given, has a ``key`` that takes ``value``.

    Raises:
        ValueError: says what is wrong, and names a key that is close.
    """
    parser = parser_of(cls, job)
    if any(action.dest.startswith(f"{key}.") for action in parser._actions):
        raise ValueError(f"{key} is a group of keys; name one of them")
    nested: Any = value
    for name in reversed(key.split(".")):
        nested = {name: nested}
    try:
        parsed = parser.parse_object({**required, **nested})[key]
    except (argparse.ArgumentError, TypeError, KeyError) as error:
        raise ValueError(explain(parser, job, [], getattr(error, "message", str(error)))) from error
    if isinstance(value, str) and not isinstance(parsed, str):
        raise ValueError(f"{key} is the text {value!r}; write {json.dumps(parsed)} without quotes")
