"""What the machinery costs, whatever is computed."""

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """Seconds, measured by the scale job.

    Attributes:
        call_s: of the driver, for a call of a worker in a pipeline.
        task_s: of the driver, for a task.
        message_s: of the driver, for a message of a training.
        commit_s: of a commit of ``rows`` samples, from its beginning to its end.
        row_s: of the driver, for a sample at the end of a campaign, where the manifest is written.
        bytes_per_s: at which the state of a training is written, from memory to a checkpoint.
    """

    call_s: float
    task_s: float
    message_s: float
    commit_s: float
    row_s: float
    bytes_per_s: float


def check_numbers(plan: Any, may_be_zero: Collection[str], may_be_infinite: Collection[str] = ()) -> None:
    """Make sure that the numbers of a dataclass are finite and more than 0, but for some of them.

    Raises:
        ValueError: names one that is.
    """
    for name in (field.name for field in fields(plan)):
        value, zero = getattr(plan, name), name in may_be_zero
        if not (value >= 0 if zero else value > 0):
            raise ValueError(f"{name} is {value}; it must be {'0 or more' if zero else 'more than 0'}")
        if math.isinf(value) and name not in may_be_infinite:
            raise ValueError(f"{name} is {value}; it must be finite")
