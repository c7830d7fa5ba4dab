"""How far the software grows: what is measured, and what is simulated with it."""

from dataclasses import dataclass, field

from voxfleet.config.resources import ResourcesConfig
from voxfleet.growth.campaign import Campaign
from voxfleet.growth.training import Training
from voxfleet.tracking.base import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Measure what Ray, commits and checkpoints cost here, and simulate campaigns and trainings of many GPUs with that.

    Args:
        output: folder of the figures and the table; commits and checkpoints are measured in its storage.
        calls: of a pipeline, and tasks, that are measured.
        commits: that are measured.
        gpus: sizes that are simulated.
        campaign: the campaign, and what its parts take.
        training: the training, and what its parts take.
        resources: where the cluster is.
        tracking: where its record goes.
    """

    output: str
    calls: int = 2000
    commits: int = 50
    gpus: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    campaign: Campaign = field(default_factory=Campaign)
    training: Training = field(default_factory=Training)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name in ("calls", "commits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.gpus or min(self.gpus) < 1:
            raise ValueError(f"gpus is {list(self.gpus)}; it must be a list of numbers from 1 on")
