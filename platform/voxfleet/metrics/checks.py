"""What measures refuse, so that a wrong array ends in a clear line and not in a wrong figure."""

import numpy as np


def check(values: np.ndarray, axes: str, name: str) -> None:
    """Let ``values`` pass where they have these axes, none of them empty, and are finite.

    Args:
        values: an array, its first axis the samples.
        axes: what the axes are, as a message says it: "n, d".
        name: what the values are called in a message, in the plural.

    Raises:
        ValueError: if they do not.
    """
    if values.ndim != len(axes.split(",")) or values.size == 0:
        raise ValueError(f"{name} are {values.shape}; they must be ({axes}), no axis empty")
    bad = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).sum())
    if bad:
        raise ValueError(f"{name} of {bad} of {len(values)} rows hold NaN or infinity; leave those rows out")
