"""The configuration of the jobs that make synthetic volumes and look at latents."""

from dataclasses import dataclass, field

from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.campaign import CampaignConfig
from voxfleet.diffusion.samplers import SamplerConfig
from voxfleet.models.execution import check_precision
from voxfleet.tracking.base import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Generate synthetic volumes as a BIDS derivative dataset.

    Args:
        output: folder of the dataset.
        model: folder of the model package, or a registered one: models:/NAME/VERSION or models:/NAME@ALIAS.
        autoencoder: the autoencoder package that the model's latents came from, likewise.
        campaign: how many samples of which class, and the base seed.
        sampler: how latents are drawn.
        precision: of the network: float32, bfloat16, or auto: bfloat16 on a GPU, float32 elsewhere.
        batch_size: samples made at once; always this many, so that every sample is the same in any batch.
        resources: where the job runs, and the number of actors.
        tracking: where its record goes.
    """

    output: str
    model: str
    autoencoder: str
    campaign: CampaignConfig = field(default_factory=CampaignConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    precision: str = "auto"
    batch_size: int = 8
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        check_precision(self.precision)
