"""The search space: domains of configuration keys, the conditions between them, and the combinations that they make."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("choice", "grid", "uniform", "loguniform", "integer")
MOST_LISTED = 1000  # combinations that a grid may have, and that are looked at before a search begins

Keys = dict[str, Any]  # a combination: key of the training configuration to value


@dataclass(frozen=True)
class Domain:
    """The values of one key.

    Attributes:
        key: of the training configuration, dotted.
        kind: one of KINDS.
        values: those of choice and grid; the lowest and highest of the others.
        when: the key is searched only where these keys, which stand before it, have one of these values; elsewhere it
            is as configured.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]]

    def listed(self) -> Sequence[Any] | None:
        """All values, where they can be listed."""
        if self.kind == "integer":
            return range(self.values[0], self.values[1] + 1)
        return self.values if self.kind in ("choice", "grid") else None

    def at(self, uniform: float) -> Any:
        """The value that stands at ``uniform`` in [0, 1) of the distribution."""
        if (listed := self.listed()) is not None:
            return listed[int(uniform * len(listed))]
        low, high = self.values
        if self.kind == "loguniform":
            return math.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
        return low + uniform * (high - low)

    def is_active(self, keys: Mapping[str, Any]) -> bool:
        """Whether the key is searched, given those before it."""
        return all(key in keys and keys[key] in allowed for key, allowed in self.when.items())


Space = tuple[Domain, ...]


def read_space(document: Mapping[str, Any]) -> Space:
    """The domains of ``{KEY: {KIND: VALUES, when: {KEY: VALUES}}}``.

    Raises:
        ValueError: if one of them is empty or no domain; the message begins with its key.
    """
    if not document:
        raise ValueError("space is empty; give at least one key, such as model.depth: {choice: [4, 8]}")
    domains: list[Domain] = []
    for key, content in document.items():
        domains.append(_read_domain(key, content, {domain.key: domain for domain in domains}))
    return tuple(domains)


def _read_domain(key: Any, content: Any, before: Mapping[str, Domain]) -> Domain:
    if not isinstance(key, str):
        raise ValueError(f"space.{key} is no key; give one of the training configuration, such as model.depth")
    kinds = [kind for kind in content if kind != "when"] if isinstance(content, Mapping) else []
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise ValueError(f"space.{key} is {content!r}; give one of {', '.join(KINDS)}, such as {{choice: [4, 8]}}")
    kind, values = kinds[0], content[kinds[0]]
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"space.{key}.{kind} is {values!r}; it must be a list of values")
    if kind not in ("choice", "grid"):
        _check_range(f"space.{key}.{kind}", kind, values)
    if len({json.dumps(value) for value in values}) < len(values):
        raise ValueError(f"space.{key}.{kind} holds a value twice: {values!r}; remove one")
    if kind in ("uniform", "loguniform"):
        values = [float(value) for value in values]  # what is drawn, so that a key of whole numbers refuses it
    return Domain(key, kind, tuple(values), _read_when(f"space.{key}.when", content.get("when") or {}, before))


def _read_when(name: str, when: Any, before: Mapping[str, Domain]) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping):
        raise ValueError(f"{name} is {when!r}; give keys and lists of their values, such as {{model.depth: [4]}}")
    for other, allowed in when.items():
        if other not in before:
            raise ValueError(f"{name} names {other}, which must stand before it in the space")
        if not isinstance(allowed, list | tuple) or not allowed:
            raise ValueError(f"{name}.{other} is {allowed!r}; it must be a list of values")
        known = before[other].listed() or ()
        if unknown := [value for value in allowed if value not in known]:
            raise ValueError(f"{name}.{other} is {unknown[0]!r}, which is no value of {other} in the space")
    return {other: tuple(allowed) for other, allowed in when.items()}


def _check_range(name: str, kind: str, values: Sequence[Any]) -> None:
    types = int if kind == "integer" else int | float
    if len(values) != 2 or not all(isinstance(value, types) and not isinstance(value, bool) for value in values):
        wanted = "whole numbers" if kind == "integer" else "numbers"
        raise ValueError(f"{name} is {list(values)!r}; it must be two {wanted}, the lowest and the highest value")
    low, high = values
    if not low < high or not math.isfinite(high - low):
        raise ValueError(f"{name} is {list(values)!r}, an empty range; the first must be below the second")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{name} is {list(values)!r}; both must be above 0")


def size(space: Space) -> float:
    """How many combinations there are at most; infinite where a key has a range of real numbers."""
    return math.prod(math.inf if (listed := domain.listed()) is None else len(listed) for domain in space)


def combinations(space: Space, kinds: tuple[str, ...] = ("choice", "grid", "integer")) -> Iterator[Keys]:
    """All combinations of the keys of these ``kinds``, the last key turning fastest."""
    chosen = [domain for domain in space if domain.kind in kinds]
    seen = set()
    for values in itertools.product(*(domain.listed() or () for domain in chosen)):
        keys: Keys = {}
        for domain, value in zip(chosen, values, strict=True):
            if domain.is_active(keys) or set(domain.when) - {other.key for other in chosen}:
                keys[domain.key] = value
        if (name := canonical(keys)) not in seen:
            seen.add(name)
            yield keys


def canonical(keys: Mapping[str, Any]) -> str:
    """A combination as text: equal ones have equal texts."""
    return json.dumps(keys, sort_keys=True)


def words(keys: Mapping[str, Any]) -> str:
    """A combination for people."""
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in keys.items())
