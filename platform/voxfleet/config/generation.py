"""The configuration of the jobs that make synthetic volumes and look at latents."""

from dataclasses import dataclass, field
from typing import Any

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


_SEEDS, _SUBJECTS = ("model", "seeds", "label"), ("data", "subjects")  # the two ways, by their keys


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig:
    """Show the way from one volume to another: volumes at even steps along the arc between two latents.

    Give model, seeds and label for a way between two samples (the noise that they start from), or else data and
    subjects for one between two encoded subjects (its ends are then reconstructions of their images).

    Args:
        output: folder of the picture, the volumes and the figures.
        autoencoder: folder of the autoencoder package that the latents came from.
        model: folder of the model package.
        seeds: the seeds of two samples, such as those in a campaign's manifest.
        label: the class of all volumes.
        sampler: how latents are drawn; one that adds no noise.
        precision: of the network: float32, bfloat16, or auto: bfloat16 on a GPU, float32 elsewhere.
        data: folder of latent shards.
        subjects: ids of two subjects in the shards; of one with several images the first is taken.
        points: number of volumes, the ends included.
        batch_size: volumes made at once.
        resources: where the job runs; one worker does all.
        tracking: where its record goes.
    """

    output: str
    autoencoder: str
    model: str | None = None
    seeds: tuple[int, int] | None = None
    label: str | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    precision: str = "auto"
    data: str | None = None
    subjects: tuple[str, str] | None = None
    points: int = 8
    batch_size: int = 8
    resources: ResourcesConfig = field(default_factory=lambda: ResourcesConfig(workers=1))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        given = tuple(name for name in (*_SEEDS, *_SUBJECTS) if getattr(self, name) is not None)
        if given not in (_SEEDS, _SUBJECTS):
            raise ValueError(
                f"{' and '.join(given) or 'nothing'} of {', '.join((*_SEEDS, *_SUBJECTS))} is set; give "
                f"{' and '.join(_SEEDS)}, or else {' and '.join(_SUBJECTS)}"
            )
        ends: tuple[Any, Any] = self.seeds or self.subjects or (None, None)
        if ends[0] == ends[1]:
            raise ValueError(f"{given[1]} is {list(ends)}; give two that differ")
        if self.seeds and not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; each must be 0 or more, and below 2**63")
        if self.points < 2:
            raise ValueError(f"points is {self.points}; it must be at least 2, the ends")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.resources.workers != 1:
            raise ValueError(f"resources.workers is {self.resources.workers}; one worker does all: leave it out")
        check_precision(self.precision)
