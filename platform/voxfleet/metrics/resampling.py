"""Figures that compare two sets: their intervals, and what two real sets give at the same size.

A distance is a function of two weightings of one pool of volumes: how often each counts as one of the first set, and of
the second. Resampling draws weightings, so that what costs time, distances between volumes, is computed once.
Letters: N volumes of the pool.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from voxfleet.metrics.statistics import Interval, bootstrap

Distance = Callable[[np.ndarray, np.ndarray], float]
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Comparison:
    """A figure between the real and the synthetic set, both of as many subjects.

    Attributes:
        found: real against synthetic.
        floor: real against real, the mean and spread over halves.
    """

    found: Interval
    floor: Interval


@dataclass(frozen=True)
class Pool:
    """The volumes of both sets.

    Attributes:
        subjects: a number for each volume's subject, (N,): those of one are drawn together.
        real, synthetic: rows of the two sets.
    """

    subjects: np.ndarray
    real: np.ndarray
    synthetic: np.ndarray

    def only(self, chosen: np.ndarray) -> "Pool":
        """The pool without the volumes that are not ``chosen`` (N,); rows stay what they are."""
        real, synthetic = (rows[chosen[rows]] for rows in (self.real, self.synthetic))
        return Pool(self.subjects, real, synthetic)

    def few(self, most: int, seed: int) -> "Pool":
        """One volume each of ``most`` subjects of each set at most, drawn evenly, for what takes all pairs."""
        rng = np.random.default_rng(seed)
        firsts = [rows[np.unique(self.subjects[rows], return_index=True)[1]] for rows in (self.real, self.synthetic)]
        real, synthetic = (np.sort(rng.choice(rows, min(most, len(rows)), replace=False)) for rows in firsts)
        return Pool(self.subjects, real, synthetic)

    @property
    def n(self) -> int:
        """Subjects on each side: all synthetic ones, or as many as half of the real."""
        real, synthetic = (len(np.unique(self.subjects[rows])) for rows in (self.real, self.synthetic))
        return min(real // 2, synthetic)

    def weights(self, rows: np.ndarray, of_rows: np.ndarray) -> np.ndarray:
        """(N,): ``of_rows`` at ``rows``, and 0 elsewhere."""
        weights = np.zeros(len(self.subjects))
        weights[rows] = of_rows
        return weights


def compare(distance: Distance, pool: Pool, *, repeats: int, seed: int, with_copies: bool = True) -> Comparison:
    """``distance`` between the sets, its interval, and the same between halves of the real set.

    Value and floor are means over draws, without replacement, of as many subjects a side: many distances depend on that
    number. The interval is that of a bootstrap, whose draws hold subjects more than once.

    Args:
        distance: what is computed.
        pool: the volumes.
        repeats: of all draws.
        seed: decides them.
        with_copies: false for what copies of a subject would change, such as neighbours: there are half as many
            subjects a side, and the interval is the spread of these halves, which is that of samples twice as large
            (the delete-half jackknife: Shao & Wu, "A general theory for jackknife variance estimation", 1989).

    Raises:
        ValueError: if there are fewer than 2 subjects a side.
    """
    n, rng = pool.n if with_copies else pool.n // 2, np.random.default_rng(seed)
    if n < 2:
        raise ValueError(f"there are too few subjects: {n} a side, and it takes 2")
    real, synthetic = (np.unique(pool.subjects[rows]) for rows in (pool.real, pool.synthetic))

    def between(first: np.ndarray, second: np.ndarray, rows: np.ndarray) -> float:
        drawn = ((pool.real, first), (rows, second))
        return distance(*(pool.weights(r, np.isin(pool.subjects[r], subjects)) for r, subjects in drawn))

    def half(subjects: np.ndarray) -> np.ndarray:
        return rng.choice(subjects, n, replace=False)

    values = [between(half(real), half(synthetic), pool.synthetic) for _ in range(repeats)]
    mixed = [half_and_half(real, n, rng) for _ in range(repeats)]
    floor = _spread([between(first, second, pool.real) for first, second in mixed], n)
    if not with_copies:
        return Comparison(_spread(values, n), floor)
    value = float(np.mean(values))
    whole = bootstrap(
        lambda a, b: distance(pool.weights(pool.real, a), pool.weights(pool.synthetic, b)),
        pool.subjects[pool.real],
        pool.subjects[pool.synthetic],
        repeats=repeats,
        seed=seed,
        recentre=True,
    )
    shift = value - whole.value  # of sets as large as they are, to sets of n
    return Comparison(Interval(value, whole.low + shift, whole.high + shift, n), floor)


def _spread(values: list[float], n: int) -> Interval:
    low, high = np.quantile(values, _TAILS)
    return Interval(float(np.mean(values)), float(low), float(high), n)


def half_and_half(subjects: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two times ``n`` of ``subjects``, none in both."""
    mixed = rng.permutation(subjects)
    return mixed[:n], mixed[n : 2 * n]
