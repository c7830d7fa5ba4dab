"""Which sample is seen when: a pure function of (seed, epoch), cut for any number of workers."""

import numpy as np


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``samples`` row numbers for ``epoch``, (samples,) int64.

    It sorts raw Philox bits, which (unlike numpy's shuffles) stay the same over numpy versions.
    """
    keys = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(samples)
    return np.argsort(keys, kind="stable")


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimizer steps of one epoch: the last batch may be smaller."""
    return -(-samples // batch_size)


def worker_slice(samples: int, batch_size: int, step: int, world: int, rank: int) -> slice:
    """Positions in the epoch's order that worker ``rank`` of ``world`` sees in step ``step`` of the epoch.

    The global batch is the same for any number of workers; the parts differ by one sample at most, and may be empty in
    the last step.
    """
    start = step * batch_size
    size = min(batch_size, samples - start)
    return slice(start + size * rank // world, start + size * (rank + 1) // world)
