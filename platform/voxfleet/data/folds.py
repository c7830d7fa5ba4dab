"""Which volumes a classifier is trained and tested on: all draws are by subject, stratified by class, and keyed.

Each kind of draw has a key of its own, which begins with the seed of the job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voxfleet.errors import UserError

TEST, SYNTHETIC = "test", "synthetic"
NO_FOLD = -1
_FOLDS, _HELD_OUT, _DRAWN = range(3)  # kinds of draws
Seed = Sequence[int]


def deal_folds(subjects: np.ndarray, labels: np.ndarray, folds: int, seed: Seed, classes: Sequence[str]) -> np.ndarray:
    """The fold (0 ... folds - 1) of each row, (rows,): all rows of a subject are in one.

    In each class the folds differ by one subject at most, and so they do all together.

    Raises:
        UserError: if a class has fewer subjects than there are folds.
    """
    found: dict[str, int] = {}
    for label, name in enumerate(classes):
        mine = _shuffled(subjects[labels == label], (*seed, label))
        if len(mine) < folds:
            raise UserError(
                f"class {name} has {len(mine)} subjects for {folds} folds; lower folds, or add subjects of that class"
            )
        start = len(found)  # where the last class ended: the larger folds are not the first ones each time
        found |= {subject: (start + place) % folds for place, subject in enumerate(mine)}
    return np.array([found[subject] for subject in subjects.tolist()], dtype=int)


def hold_out(subjects: np.ndarray, labels: np.ndarray, share: float, seed: Seed) -> np.ndarray:
    """Whether each row is held out, (rows,): about ``share`` of the subjects of each class, at least one of them.

    The only subject of a class is not held out.
    """
    held: set[str] = set()
    for label in np.unique(labels).tolist():
        mine = _shuffled(subjects[labels == label], (*seed, label))
        held |= set(mine[: min(max(1, round(share * len(mine))), len(mine) - 1)])
    return np.isin(subjects, sorted(held))


def draw_rows(labels: np.ndarray, counts: Mapping[int, int], seed: Seed) -> np.ndarray:
    """``counts[label]`` rows of each class, drawn without replacement; more are these and others."""
    rows = [
        np.random.default_rng((*seed, label)).permutation(np.flatnonzero(labels == label))[:count]
        for label, count in sorted(counts.items())
    ]
    return np.sort(np.concatenate(rows))


def _shuffled(subjects: np.ndarray, seed: Seed) -> list[str]:
    return np.random.default_rng(seed).permutation(np.unique(subjects)).tolist()


@dataclass(frozen=True)
class Regime:
    """What classifiers are trained on.

    Attributes:
        key: names it in files and records.
        title: names it for a reader.
        real: whether real volumes are among it.
        percent: of the number of real training volumes, how many synthetic ones are; None for all there are.
    """

    key: str
    title: str
    real: bool
    percent: float | None

    @classmethod
    def mixed(cls, percent: float) -> "Regime":
        """Real volumes, and synthetic ones of ``percent`` of their number."""
        return cls(f"real-{percent:g}", f"real + {percent:g} % synthetic", True, percent)


REAL = Regime("real", "real only", True, 0.0)
SYNTHETIC_ONLY = Regime(SYNTHETIC, "synthetic only", False, None)


@dataclass(frozen=True)
class Table:
    """All volumes of a comparison, real ones first.

    Attributes:
        classes: class names.
        names: of each volume, for the reader, (n,).
        subjects: of each volume, (n,).
        labels: index into ``classes`` of each volume, (n,).
        parts: "train", "val", "test" or "synthetic", (n,).
        folds: of each real volume that is not for the test, else NO_FOLD, (n,).
    """

    classes: tuple[str, ...]
    names: np.ndarray
    subjects: np.ndarray
    labels: np.ndarray
    parts: np.ndarray
    folds: np.ndarray

    def of(self, part: str) -> np.ndarray:
        """The rows of ``part``."""
        return np.flatnonzero(self.parts == part)

    def in_fold(self, fold: int) -> np.ndarray:
        """The rows of ``fold``, which the classifiers of that fold never see."""
        return np.flatnonzero((self.folds == fold) & (self.folds != NO_FOLD))

    def training(self, regime: Regime, fold: int, seed: Seed, validation: float) -> tuple[np.ndarray, np.ndarray, int]:
        """The rows to train on, those that choose the best epoch, and the draws of an epoch.

        The second are a share ``validation`` of the subjects: of the real ones where there are any. The draws are as
        many as there are real rows to train on, in every regime, so that all trainings are equally long.

        Raises:
            UserError: if there are fewer synthetic volumes of a class than the regime asks for.
        """
        others = np.flatnonzero((self.folds != fold) & (self.folds != NO_FOLD))
        real, chooses = self._held_out(others, (*seed, _HELD_OUT, fold), validation)
        if regime == REAL:
            return real, chooses, len(real)
        synthetic = self.of(SYNTHETIC)
        if not regime.real:
            return *self._held_out(synthetic, (*seed, _HELD_OUT, fold), validation), len(real)
        assert regime.percent is not None
        counts = {
            label: round(regime.percent / 100 * np.count_nonzero(self.labels[real] == label))
            for label in range(len(self.classes))
        }
        for label, count in counts.items():
            there = np.count_nonzero(self.labels[synthetic] == label)
            if count > there:
                raise UserError(
                    f"real + {regime.percent:g} % needs {count} synthetic volumes of class {self.classes[label]}, "
                    f"there are {there}; generate more, or lower mix"
                )
        drawn = synthetic[draw_rows(self.labels[synthetic], counts, (*seed, _DRAWN, fold))]
        return np.concatenate([real, drawn]), chooses, len(real)

    def _held_out(self, rows: np.ndarray, seed: Seed, share: float) -> tuple[np.ndarray, np.ndarray]:
        held = hold_out(self.subjects[rows], self.labels[rows], share, seed)
        return rows[~held], rows[held]


def folds_of(
    subjects: np.ndarray, labels: np.ndarray, parts: np.ndarray, folds: int, seed: int, classes: Sequence[str]
) -> np.ndarray:
    """The fold of each row, NO_FOLD for those of the test.

    Raises:
        UserError: as ``deal_folds``.
    """
    dealt = np.full(len(subjects), NO_FOLD)
    kept = parts != TEST
    dealt[kept] = deal_folds(subjects[kept], labels[kept], folds, (seed, _FOLDS), classes)
    return dealt
