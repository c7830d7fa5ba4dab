"""A verdict in a few lines: how many figures of each group are as wanted, and which are farthest from it."""

import math
from collections.abc import Callable, Sequence

from voxfleet.engine.comparison import Figure
from voxfleet.report.page import Check, Summary

_SHOWN = 3  # figures of a group


def summary(name: str, figures: Sequence[Figure], check: Callable[[Figure], Check], *, needed: bool = False) -> Summary:
    """The group ``name``; ``check`` puts a figure in words.

    Where all are ``needed``, a figure that could not be computed is not as wanted; else it does not count.
    """
    judged = [figure for figure in figures if figure.passed is not None or (needed and not figure.found)]
    failed = sorted((figure for figure in judged if not figure.passed), key=distance, reverse=True)
    return Summary(name, len(judged), len(judged) - len(failed), [check(figure) for figure in failed[:_SHOWN]])


def distance(figure: Figure) -> float:
    """How far a figure is from that of real sets, in half widths of both intervals.

    It is infinite where there is no such width, and -1 where the figure could not be computed.
    """
    if figure.found is None:
        return -1.0
    if figure.floor is None:
        return math.inf
    reach = math.hypot(figure.found.high - figure.found.low, figure.floor.high - figure.floor.low) / 2
    apart = abs(figure.found.value - figure.floor.value)
    return apart / reach if reach else math.inf
