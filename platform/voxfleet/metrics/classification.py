"""How good a classifier is, from its probabilities. Letters: n subjects, C classes."""

from collections.abc import Sequence

import numpy as np

from voxfleet.metrics.statistics import Interval, auc_interval, wilson

AUC, ACCURACY, SENSITIVITY, SPECIFICITY = "auc", "accuracy", "sensitivity", "specificity"


def classification_figures(probabilities: np.ndarray, labels: np.ndarray, positive: int) -> dict[str, Interval]:
    """AUC (DeLong's interval), accuracy, sensitivity and specificity (Wilson's) of one prediction a subject.

    A subject is called what is most probable. A figure that the classes there do not allow is left out: the AUC takes
    two subjects of each.

    Args:
        probabilities: (n, C).
        labels: (n,).
        positive: the class that is looked for; all others are negative.
    """
    called, is_positive = probabilities.argmax(axis=1), labels == positive
    found: dict[str, Interval] = {}
    if min(is_positive.sum(), (~is_positive).sum()) >= 2:
        found[AUC] = auc_interval(probabilities[:, positive], is_positive)
    found[ACCURACY] = wilson(int((called == labels).sum()), len(labels))
    if is_positive.any():
        found[SENSITIVITY] = wilson(int((called[is_positive] == positive).sum()), int(is_positive.sum()))
    if not is_positive.all():
        found[SPECIFICITY] = wilson(int((called[~is_positive] != positive).sum()), int((~is_positive).sum()))
    return found


def agreement(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Interval]:
    """Share of samples (n, C) that are called what they were asked for, ``labels`` (n,): of all, and of each class."""
    right = probabilities.argmax(axis=1) == labels
    groups = {"all": np.ones(len(labels), dtype=bool), **{name: labels == i for i, name in enumerate(classes)}}
    return {name: wilson(int(right[mine].sum()), int(mine.sum())) for name, mine in groups.items() if mine.any()}


def transfer_auc(features: np.ndarray, is_positive: np.ndarray, tested: np.ndarray, trained: np.ndarray) -> float:
    """AUC, in volumes that count ``tested`` times, of a logistic regression learned from those that count ``trained``.

    "Train on synthetic, test on real": Esteban, Hyland & Raetsch, "Real-valued (Medical) Time Series Generation with
    Recurrent Conditional GANs" (2017). Features are scaled to the spread of those learned from; the penalty is ridge's.

    Args:
        features: (n, F).
        is_positive: (n,) bool.
        tested, trained: weights (n,), 0 or more.

    Raises:
        ValueError: if either part holds one class only.
    """
    from sklearn.linear_model import LogisticRegression  # here, as it takes a second to import
    from sklearn.metrics import roc_auc_score

    parts = [weights > 0 for weights in (tested, trained)]
    if any(len(np.unique(is_positive[there])) < 2 for there in parts):
        raise ValueError("a draw of so few volumes holds one class only; it takes both")
    there, learned = parts
    mean = np.average(features[learned], axis=0, weights=trained[learned])
    variance = np.average((features[learned] - mean) ** 2, axis=0, weights=trained[learned])
    scaled = (features - mean) / np.sqrt(np.where(variance > 0, variance, 1))
    model = LogisticRegression().fit(scaled[learned], is_positive[learned], sample_weight=trained[learned])
    scores = model.decision_function(scaled[there])
    return float(roc_auc_score(is_positive[there], scores, sample_weight=tested[there]))


def roc_curve(scores: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate at each threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores fall together
    true, false = np.cumsum(is_positive[order])[last], np.cumsum(~is_positive[order])[last]
    return np.append(0.0, false / max(false[-1], 1)), np.append(0.0, true / max(true[-1], 1))
