"""Which sample is seen when: a pure function of the seed and the epoch, cut for any number of workers.

The order of an epoch is the same for any number of workers, and so are its global batches; worker r takes the r-th part
of each batch. So that a large set can be streamed, the order is also kind to files: the epoch is cut into windows of a
few batches, and a window draws on few row groups, of which each worker needs its own few. In the order of row groups,
which is new in every epoch, ``LANES`` places advance at once, and each batch takes its share from each of them.
"""

from dataclasses import dataclass

import numpy as np

UNIT_BYTES = 16 << 20  # of what one task reads, where a worker's part of a window is smaller
LANES = 16  # up to so many workers, a row group is read by one worker, or by two at the borders
WINDOW_BYTES = 32 << 20  # of a window: it is shuffled as a whole, and a worker reads its part of it in one task

# streams of keys: each use of chance has its own
_ROWS, _GROUPS, _CHAIN = range(3)


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """How the shards reach the workers.

    Args:
        mode: kept (read once, held in memory), streamed (read in each epoch), or auto: kept where it fits into memory.
            The batches are the same.
        balanced: draw each class equally often, instead of each sample once an epoch; an epoch is as long. Each class
            goes through all of its samples before one is drawn again.
    """

    mode: str = "auto"
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "kept", "streamed"):
            raise ValueError(f"mode is {self.mode!r}; it must be auto, kept or streamed")


@dataclass(frozen=True)
class Plan:
    """The draws of every epoch.

    Attributes:
        labels: class of each row, (rows,).
        groups: number of the row group that holds each row, (rows,), rising.
        batch_size: draws of a global batch.
        row_bytes: of one row in memory.
        seed: another seed gives another order.
        balanced: see ``LoadingConfig``.
    """

    labels: np.ndarray
    groups: np.ndarray
    batch_size: int
    row_bytes: int
    seed: int
    balanced: bool = False

    @property
    def draws(self) -> int:
        """Draws of an epoch: as many as there are rows."""
        return len(self.labels)

    @property
    def steps(self) -> int:
        """Batches of an epoch; the last may be smaller."""
        return -(-self.draws // self.batch_size)

    @property
    def window_steps(self) -> int:
        """Batches of a window."""
        return max(1, WINDOW_BYTES // (self.row_bytes * self.batch_size))

    def order(self, epoch: int) -> np.ndarray:
        """Row numbers in the order in which ``epoch`` draws them, (draws,) int64."""
        rows = self._balanced_rows(epoch) if self.balanced else np.arange(self.draws)
        keys = _keys(len(rows), self.seed, _ROWS, epoch)
        window = self.window_steps * self.batch_size
        if window >= len(rows):
            return rows[np.argsort(keys, kind="stable")]
        place = np.argsort(_permutation(self.groups[-1] + 1, self.seed, _GROUPS, epoch))  # of each group in the epoch
        rows = rows[np.argsort(place[self.groups[rows]], kind="stable")]
        return rows[_interleave(keys, window, self.batch_size)]

    def part(self, step: int, world: int, rank: int) -> slice:
        """Positions in the order that worker ``rank`` of ``world`` takes in ``step``.

        The parts of a batch differ by one draw at most, and may be empty in the last step.
        """
        start = step * self.batch_size
        size = min(self.batch_size, self.draws - start)
        return slice(start + size * rank // world, start + size * (rank + 1) // world)

    def units(self, first: int, world: int, rank: int) -> list[int]:
        """Rows of each reading task of a worker, in order, for the epoch's steps from ``first`` on.

        A task reads whole windows, since the row groups of a window are read together; or a part of one, where a
        single batch is a window.
        """
        most = max(1, UNIT_BYTES // self.row_bytes)
        sizes: list[int] = []
        for start in range(first - first % self.window_steps, self.steps, self.window_steps):
            parts = [
                self.part(s, world, rank) for s in range(max(start, first), min(start + self.window_steps, self.steps))
            ]
            rows = sum(part.stop - part.start for part in parts)
            if self.window_steps == 1 and rows > most:
                sizes += [len(piece) for piece in np.array_split(np.empty(rows), -(-rows // most))]
            elif sizes and sizes[-1] + rows <= most:
                sizes[-1] += rows
            else:
                sizes.append(rows)
        return [size for size in sizes if size]

    def _balanced_rows(self, epoch: int) -> np.ndarray:
        """Each class has an endless chain of permutations of its rows; each epoch takes the next part of it."""
        classes = np.unique(self.labels)
        parts = []
        for number, label in enumerate(classes):
            size = (self.draws + number) // len(classes)
            rows = np.flatnonzero(self.labels == label)
            first, start = divmod(epoch * size, len(rows))
            last = -(-(epoch + 1) * size // len(rows))
            chain = [rows[_permutation(len(rows), self.seed, _CHAIN, int(label), i)] for i in range(first, last)]
            parts.append(np.concatenate(chain)[start : start + size])
        return np.concatenate(parts)


def _interleave(keys: np.ndarray, window: int, batch_size: int) -> np.ndarray:
    """The places that consecutive draws take from: of ``keys`` many draws, sorted by row group."""
    sizes = np.diff(np.append(np.arange(0, len(keys), window), len(keys)))  # draws of each window
    edges = sizes * np.arange(LANES + 1)[:, None] // LANES
    shares = np.diff(edges, axis=0)  # (lane, window): what a window takes from a lane
    cell = np.repeat(np.arange(shares.size), shares.ravel())  # a lane is a run of draws, a cell its part for a window
    shuffled = np.lexsort((keys, cell))
    first = np.cumsum(shares.ravel()) - shares.ravel()
    within = (np.arange(len(keys)) - first[cell] + 0.5) / shares.ravel()[cell]  # evenly over the window's batches
    lane, of_window = np.divmod(cell, len(sizes))
    spread = np.lexsort((lane, within, of_window))
    batch = np.arange(len(keys)) // batch_size
    return shuffled[spread[np.lexsort((lane[spread], batch))]]


def _keys(count: int, *seed: int) -> np.ndarray:
    """Raw Philox bits, which (unlike numpy's shuffles) stay the same over numpy versions."""
    return np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)


def _permutation(count: int, *seed: int) -> np.ndarray:
    return np.argsort(_keys(count, *seed), kind="stable")
