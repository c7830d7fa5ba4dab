"""The configuration of the job that trains classifiers of real and synthetic volumes."""

from dataclasses import dataclass, field

from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.folds import REAL, SYNTHETIC_ONLY, Regime
from voxfleet.models.classifier import ClassifierConfig
from voxfleet.tracking.base import TrackingConfig
from voxfleet.train.classifier import ClassifierTrainingConfig

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Train classifiers on real, on synthetic, and on real and synthetic volumes, and test all on the same real people.

    The test split of the real volumes is never trained on. The others are cut into folds by subject: the classifiers of
    a fold are trained without it. So each regime has folds x seeds classifiers.

    Args:
        output: folder of the figures, the predictions, the page, and the package of the classifier that is trained on
            the train split of the real volumes.
        real: folder of the real volume shards.
        synthetic: folder of a synthetic dataset of the same grid; null trains on real volumes alone.
        mix: synthetic volumes that are added to the real ones, in percent of their number: one regime each.
        folds: parts of the splits train and val.
        seeds: classifiers of each regime and fold, which differ in their initial weights, order and validation part.
        seed: of the folds and all draws.
        region_mm: box that the classifiers look at, from and to along each axis (to the right, front and top), such as
            [[-45, 45], [-45, 10], [-40, 10]] around the hippocampi; null takes whole volumes. A small cohort does not
            teach a network where to look.
        positive: the class that is looked for, which sensitivity and AUC are of; null takes the last one.
        model: the network; its input_size and num_classes are those of the volumes (of the region), whatever is set.
        training: how each is trained.
        resources: where the job runs, and the number of actors; each trains one classifier at a time.
        tracking: where its record goes.
    """

    output: str
    real: str
    synthetic: str | None = None
    mix: tuple[float, ...] = (50.0, 100.0)
    folds: int = 5
    seeds: int = 3
    seed: int = 0
    region_mm: tuple[Range, Range, Range] | None = None
    positive: str | None = None
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    training: ClassifierTrainingConfig = field(default_factory=ClassifierTrainingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; it must be at least 2")
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if not all(percent > 0 for percent in self.mix) or len(set(self.mix)) < len(self.mix):
            raise ValueError(f"mix is {list(self.mix)}; it must be percentages above 0, each once")
        for low, high in self.region_mm or ():
            if not low < high:
                raise ValueError(f"region_mm goes from {low} to {high} along an axis; it must go up")

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """What there is to train on, real volumes alone first."""
        return (REAL, SYNTHETIC_ONLY, *map(Regime.mixed, self.mix)) if self.synthetic else (REAL,)
