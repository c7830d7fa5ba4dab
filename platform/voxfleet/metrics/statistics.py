"""Figures with their uncertainty: bootstrap, AUC, effect size, proportions. Every interval holds 95 %.

Letters: m positives or members of the first group, n negatives or members of the second.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

_TAILS = (0.025, 0.975)
_Z = float(norm.ppf(_TAILS[1]))


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval.

    Attributes:
        value: the figure.
        low: lower end of the interval.
        high: upper end.
        n: how many subjects it rests on; of two samples, both together.
    """

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Callable[..., float],
    *samples: npt.ArrayLike,
    repeats: int = 1000,
    seed: int = 0,
    recentre: bool = False,
) -> Interval:
    """``statistic`` with the percentile interval of its resamples (Efron, "Bootstrap methods", 1979).

    Subjects are drawn with replacement, those of each sample by themselves; all rows of a subject come together.

    A percentile interval has the bias of its resamples. They hold rows twice, so they look narrower and less like
    another sample than the sample itself: a Frechet distance rises in them by about as much as it is too high already,
    and the interval may lie above the value. For such a statistic, ``recentre`` the resamples: their spread is kept.
    The bias of the value stays, so show the same statistic of two real samples of this size beside it. Below about 20
    subjects any percentile interval is somewhat too narrow.

    Args:
        statistic: takes one array of weights for each sample, (rows,) integers: how often each row was drawn, 0 or
            more (``np.repeat(rows, weights)`` are the rows that were drawn). It is called with ones for the value.
        samples: for each sample the subject of each row, (rows,), numbers or names; ``np.arange(n)`` if each row is a
            subject.
        repeats: number of resamples.
        seed: decides the resamples.
        recentre: shift the resamples so that their median is the value.

    Raises:
        ValueError: if a sample is empty, there are no resamples, or the statistic is not finite.
    """
    if not samples or repeats < 1:
        raise ValueError(f"{len(samples)} samples and {repeats} repeats; give at least one of each")
    subjects = [_subject_numbers(sample) for sample in samples]
    value = float(statistic(*(np.ones(len(numbers), dtype=np.int64) for numbers in subjects)))
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [statistic(*(_weights(numbers, rng) for numbers in subjects)) for _ in range(repeats)], dtype=float
    )
    bad = int(np.count_nonzero(~np.isfinite(drawn)))
    if bad or not math.isfinite(value):
        raise ValueError(
            f"the statistic is {value:g}, and not finite in {bad} of {repeats} resamples; "
            "make each class a sample of its own, so that none is ever missing"
        )
    shift = value - float(np.median(drawn)) if recentre else 0.0
    low, high = np.quantile(drawn, _TAILS) + shift
    return Interval(value, float(low), float(high), sum(int(numbers.max()) + 1 for numbers in subjects))


def _subject_numbers(sample: npt.ArrayLike) -> np.ndarray:
    """``sample`` (rows,) as numbers from 0."""
    array = np.asarray(sample)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"a sample has shape {array.shape}; give the subject of each row, at least one")
    return np.unique(array, return_inverse=True)[1]


def _weights(numbers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each row is drawn; one subject alone, in whom nothing varies, is drawn again."""
    subjects = int(numbers.max()) + 1
    drawn = np.zeros(subjects, dtype=np.int64)
    while np.count_nonzero(drawn) < min(2, subjects):
        drawn = np.bincount(rng.integers(subjects, size=subjects), minlength=subjects)
    return drawn[numbers]


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Args:
        scores: (rows,), higher for what looks positive.
        labels: (rows,), 1 or true for positives, 0 or false for negatives.

    Raises:
        ValueError: if the shapes differ, a score is not finite, or a class is missing.
    """
    return float(_placements(*_by_class(scores, labels, least=1))[0].mean())


def auc_interval(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Interval:
    """``auc`` with the interval of DeLong's variance on the logit scale (Pepe, "The Statistical Evaluation of Medical
    Tests", 2003, section 5.2), which keeps it within 0 and 1.

    That variance is 0 for classes that the scores separate completely, and they may still overlap among people not
    seen. There the interval is Newcombe's ("Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic, part 2", 2006, method 5).

    Args:
        scores: (rows,), one a subject.
        labels: (rows,), 1 for positives.

    Raises:
        ValueError: as ``auc``, or if a class has one member.
    """
    positive, negative = _by_class(scores, labels, least=2)
    above, below = _placements(positive, negative)
    value, error = float(above.mean()), _standard_error(above, below)
    if error > 0:
        reach = _Z * error / (value * (1 - value))
        low, high = expit(logit(value) - reach), expit(logit(value) + reach)
    else:
        low, high = _newcombe(value, len(positive), len(negative))
    return Interval(value, float(low), float(high), len(positive) + len(negative))


def delong(scores_a: npt.ArrayLike, scores_b: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Interval, float]:
    """The AUC of ``scores_a`` less that of ``scores_b`` on the same subjects, and its two-sided p-value.

    DeLong et al., "Comparing the areas under two or more correlated receiver operating characteristic curves" (1988),
    by ranks (Sun & Xu, "Fast implementation of DeLong's algorithm", 2014).

    Args:
        scores_a: (rows,), one a subject.
        scores_b: the other classifier's, (rows,).
        labels: (rows,), 1 for positives.

    Raises:
        ValueError: as ``auc_interval``.
    """
    above_a, below_a = _placements(*_by_class(scores_a, labels, least=2))
    above_b, below_b = _placements(*_by_class(scores_b, labels, least=2))
    above, below = above_a - above_b, below_a - below_b
    difference, error = float(above.mean()), _standard_error(above, below)
    p_value = float(2 * norm.sf(abs(difference) / error)) if error > 0 else float(difference == 0)
    reach = _Z * error
    return Interval(difference, difference - reach, difference + reach, len(above) + len(below)), p_value


def _by_class(scores: npt.ArrayLike, labels: npt.ArrayLike, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the positives (m,) and of the negatives (n,), at least ``least`` of each."""
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"scores are {score.shape} and labels {label.shape}; give one of each for each row")
    if not np.isfinite(score).all() or not np.isin(label, (0, 1)).all():
        raise ValueError("a score is not finite, or a label is neither 0 nor 1; leave such rows out")
    positive, negative = score[label == 1], score[label == 0]
    if min(len(positive), len(negative)) < least:
        raise ValueError(f"{len(positive)} positives and {len(negative)} negatives; it takes {least} of each")
    return positive, negative


def _placements(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the negatives below each positive (m,), and of the positives above each negative (n,); ties half."""
    m, n = len(positive), len(negative)
    rank = rankdata(np.concatenate([positive, negative]))
    return (rank[:m] - rankdata(positive)) / n, 1 - (rank[m:] - rankdata(negative)) / m


def _standard_error(above: np.ndarray, below: np.ndarray) -> float:
    return math.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))


def _newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """The AUCs from which ``value`` lies 1.96 of their own standard errors away (Hanley & McNeil's, m = n within)."""
    others = (m + n) / 2 - 1

    def excess(area: float) -> float:
        spread = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
        return (area - value) ** 2 - _Z**2 * area * (1 - area) * spread / (m * n)

    step = 1e-9  # 0 and 1 themselves always solve it
    low = brentq(excess, 0, value - step) if value > 0 else 0.0
    high = brentq(excess, value + step, 1) if value < 1 else 1.0
    return low, high


def effect_size(a: npt.ArrayLike, b: npt.ArrayLike) -> Interval:
    """Hedges' g: mean of ``a`` less mean of ``b`` in units of their common standard deviation, freed of bias.

    Hedges, "Distribution theory for Glass's estimator of effect size" (1981), with the correction 1 - 3 / (4 df - 1);
    the interval is the large-sample one of Hedges & Olkin, "Statistical Methods for Meta-Analysis" (1985), chapter 5.

    Args:
        a: (m,), one value a subject.
        b: (n,).

    Raises:
        ValueError: if a group has fewer than two members, a value is not finite, or none varies.
    """
    first, second = _values(a), _values(b)
    m, n = len(first), len(second)
    freedom = m + n - 2
    variance = ((m - 1) * first.var(ddof=1) + (n - 1) * second.var(ddof=1)) / freedom
    if variance == 0:
        raise ValueError("all values of a group are equal, in both groups; an effect size needs some that vary")
    value = (1 - 3 / (4 * freedom - 1)) * float(first.mean() - second.mean()) / math.sqrt(variance)
    reach = _Z * math.sqrt((m + n) / (m * n) + value**2 / (2 * (m + n)))
    return Interval(value, value - reach, value + reach, m + n)


def _values(group: npt.ArrayLike) -> np.ndarray:
    array = np.asarray(group, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"a group has shape {array.shape}; give two or more finite values, one a subject")
    return array


def wilson(successes: int, n: int) -> Interval:
    """The proportion ``successes`` of ``n``, with the score interval of Wilson, "Probable inference" (1927).

    Raises:
        ValueError: if n is not positive, or successes not from 0 to n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; it takes at least one trial, and from none to all successes")
    share, z2 = successes / n, _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (centre - reach if successes else 0.0), (centre + reach if successes < n else 1.0)  # without rounding
    return Interval(share, low, high, n)
