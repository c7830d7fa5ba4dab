"""Does a synthetic set give away whom it was trained on? Answers from distances to nearest neighbours.

The yardstick is what new people would show: real volumes that were held out from training. Distances come from
``neighbours`` in any space (latents, features, voxels), the same for both. A row stands for a subject: give one scan of
each, and audit the cohort for duplicates first, as a held-out scan that is in training as well makes copies look usual.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import betabinom

from voxfleet.metrics.statistics import Interval, auc_interval, bootstrap, wilson


@dataclass(frozen=True)
class Nearness:
    """How many synthetic samples are unusually near to training samples.

    Attributes:
        limit: the distance below which a sample is near: a low order statistic of the held-out ones.
        share: of the synthetic samples that are nearer than that, with Wilson's interval.
        expected: the share of new people who would be.
        p_value: the probability of so many or more, were the samples new people (one-sided).
    """

    limit: float
    share: Interval
    expected: float
    p_value: float


def nearness(synthetic: npt.ArrayLike, held_out: npt.ArrayLike, quantile: float = 0.05) -> Nearness:
    """How many synthetic samples are nearer to training than all but a share ``quantile`` of held-out people.

    The limit is drawn as well, so the number below it is not binomial: given the limit, a new person lies below with a
    probability that itself is Beta distributed (an order statistic of a uniform sample). The p-value is of that
    beta-binomial, exact for any numbers of samples; a binomial one would give false alarms where few are held out.

    Args:
        synthetic: (n,), distance of each synthetic sample to the nearest training sample.
        held_out: (m,), the same of real samples that were not trained on.
        quantile: share of the held-out distances up to the limit, at least one of them; 0 takes the smallest.

    Raises:
        ValueError: if there are none, one is not a distance, or quantile is not from 0 to 1.
    """
    distances, reference = _distances(synthetic), _distances(held_out)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; it must be from 0 to 1")
    n, m = len(distances), len(reference)
    rank = max(1, int(quantile * m))
    limit = float(np.partition(reference, rank - 1)[rank - 1])
    near = int(np.count_nonzero(distances < limit))
    p_value = float(betabinom.sf(near - 1, n, rank, m + 1 - rank))
    return Nearness(limit, wilson(near, n), rank / (m + 1), p_value)


def copies(distances: npt.ArrayLike, reference: npt.ArrayLike, factor: float = 0.5) -> np.ndarray:
    """Which samples are nearer than ``factor`` times any of the reference, (n,) bool.

    For copies of training: synthetic to training against held-out to training. For duplicates within the set: the
    nearest other synthetic sample against the nearest other real one, in sets of one size, as more are nearer.

    Args:
        distances: (n,), to the nearest.
        reference: (m,), what is usual.
        factor: of the smallest of ``reference``, from 0 to 1.

    Raises:
        ValueError: if there are none, one is not a distance, factor is not from 0 to 1, or the smallest of the
            reference is 0.
    """
    near, usual = _distances(distances), _distances(reference)
    if not 0 < factor <= 1:
        raise ValueError(f"factor is {factor}; it must be above 0 and at most 1")
    if usual.min() == 0:
        raise ValueError("two reference scans are one: a distance is 0; remove the duplicate from the real data")
    return near < factor * usual.min()


def distance_ratio(
    synthetic: npt.ArrayLike, held_out: npt.ArrayLike, *, repeats: int = 1000, seed: int = 0
) -> Interval:
    """Median distance of synthetic samples to training over that of held-out people; 1 where they are as near.

    Args:
        synthetic: (n,), distances to the nearest training sample.
        held_out: (m,), the same of real samples that were not trained on.
        repeats: as ``bootstrap``.
        seed: as ``bootstrap``.

    Raises:
        ValueError: if there are none, one is not a distance, or half of those held out are 0.
    """
    near, usual = _distances(synthetic), _distances(held_out)
    if np.median(usual) == 0:
        raise ValueError("the median held-out distance is 0: those scans are in training; split the cohort anew")

    def ratio(weights: np.ndarray, usual_weights: np.ndarray) -> float:
        return float(np.median(np.repeat(near, weights)) / np.median(np.repeat(usual, usual_weights)))

    return bootstrap(ratio, np.arange(len(near)), np.arange(len(usual)), repeats=repeats, seed=seed)


@dataclass(frozen=True)
class SubjectCoverage:
    """How many training subjects are the nearest one of some sample.

    Attributes:
        distinct: of all synthetic samples.
        draws: the number of samples at which the two below are compared.
        synthetic: the mean number of subjects that as many synthetic samples have.
        real: the mean number that as many held-out people have.
        p_value: the probability that the synthetic samples fall so far short of the real ones, or further, were they
            new people (one-sided).
    """

    distinct: int
    draws: int
    synthetic: float
    real: float
    p_value: float


def coverage_of_subjects(
    synthetic: npt.ArrayLike, held_out: npt.ArrayLike, *, repeats: int = 1000, seed: int = 0
) -> SubjectCoverage:
    """How many training subjects synthetic samples lie nearest to, beside as many held-out people: few are a collapse.

    The larger set is reduced to the size of the smaller by its expectation over subsets (rarefaction: Hurlbert, "The
    nonconcept of species diversity", 1971). The p-value is of a permutation test.

    Args:
        synthetic: (n,), the subject of the training sample nearest to each synthetic one: numbers or names.
        held_out: (m,), the same of real samples that were not trained on.
        repeats: number of permutations.
        seed: decides them.

    Raises:
        ValueError: if there are none.
    """
    first, second = np.asarray(synthetic), np.asarray(held_out)
    if first.ndim != 1 or second.ndim != 1 or not first.size or not second.size or repeats < 1:
        raise ValueError(f"subjects are {first.shape} and {second.shape}, repeats {repeats}; give (n,), (m,), and some")
    n, draws = len(first), min(len(first), len(second))
    _, subjects = np.unique(np.concatenate([first, second]), return_inverse=True)
    covered = _expected_distinct(subjects[:n], draws), _expected_distinct(subjects[n:], draws)
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(repeats):
        mixed = rng.permutation(subjects)
        shortfall = _expected_distinct(mixed[n:], draws) - _expected_distinct(mixed[:n], draws)
        extreme += shortfall >= covered[1] - covered[0] - 1e-9  # rounding does not break a tie
    return SubjectCoverage(len(np.unique(first)), draws, *covered, (1 + extreme) / (1 + repeats))


def _expected_distinct(subjects: np.ndarray, draws: int) -> float:
    """Mean number of distinct values of ``draws`` of ``subjects``, drawn without replacement."""
    total, counts = len(subjects), np.bincount(subjects)
    others = total - counts[counts > 0]
    possible = others[others >= draws]  # the other values cannot be missed
    missed = np.exp(_log_choose(possible, draws) - _log_choose(np.array(total), draws))
    return float(len(others) - missed.sum())


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


@dataclass(frozen=True)
class Preference:
    """Whether samples lie nearer to people who were trained on than to others.

    Attributes:
        share: of the samples, whose nearest person was trained on; about .5 without preference, but blurred samples all
            lie nearest to the few people who are most like the mean, whoever they are.
        p_value: the probability of so large a share, were training and held-out people exchanged (one-sided).
    """

    share: float
    p_value: float


def preference(
    to_training: npt.ArrayLike, to_held_out: npt.ArrayLike, *, repeats: int = 1000, seed: int = 0
) -> Preference:
    """How often the nearest person of a sample is one who was trained on, among as many of these as of others.

    It does not depend on how sharp samples are: what is blurred is nearer to everybody, which fools a comparison with
    the distances between real volumes. The p-value is of a permutation test over people.

    Args:
        to_training: (n, m), distance of each sample to each training subject.
        to_held_out: (n, k), to each held-out one.
        repeats: draws of people for the share, and permutations.
        seed: decides them.

    Raises:
        ValueError: if there are none, or one is not a distance.
    """
    trained, others = np.asarray(to_training), np.asarray(to_held_out)
    if trained.ndim != 2 or others.ndim != 2 or len(trained) != len(others) or not trained.size or not others.size:
        raise ValueError(
            f"distances are {trained.shape} and {others.shape}; give (n, m) and (n, k), none of them empty"
        )
    distances = _distances(np.concatenate([trained, others], axis=1).ravel()).reshape(len(trained), -1)
    rng, size = np.random.default_rng(seed), min(trained.shape[1], others.shape[1])
    number = distances.shape[1]

    def share(first: np.ndarray, second: np.ndarray) -> float:
        nearest = distances[:, first[:size]].min(axis=1), distances[:, second[:size]].min(axis=1)
        return float((nearest[0] < nearest[1]).mean() + (nearest[0] == nearest[1]).mean() / 2)

    split = np.arange(number) < trained.shape[1]
    shuffled = [rng.permutation(number) for _ in range(repeats)]
    found = float(np.mean([share(order[split[order]], order[~split[order]]) for order in shuffled]))
    by_chance = np.array([share(order, order[size:]) for order in shuffled])
    return Preference(found, float((1 + np.count_nonzero(by_chance >= found)) / (1 + repeats)))


def membership(trained: npt.ArrayLike, held_out: npt.ArrayLike) -> Interval:
    """AUC with which the distance to the nearest synthetic sample tells who was trained on; 0.5 is no leak.

    The attack on published samples alone of Chen et al., "GAN-Leaks" (2020).

    Args:
        trained: (n,), distance of each training subject to the nearest synthetic sample.
        held_out: (m,), the same of subjects that were not trained on.

    Raises:
        ValueError: if there are fewer than two of either, or one is not a distance.
    """
    inside, outside = _distances(trained), _distances(held_out)
    labels = np.repeat([1, 0], [len(inside), len(outside)])
    return auc_interval(-np.concatenate([inside, outside]), labels)


def _distances(values: npt.ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"distances are {array.shape}; give (n,), at least one")
    if not (np.isfinite(array).all() and array.min() >= 0):
        raise ValueError("a distance is negative or not finite; leave such samples out")
    return array
