"""The configuration of the job that shows latents."""

import importlib.util
from dataclasses import dataclass, field

from voxfleet.config.resources import ResourcesConfig
from voxfleet.tracking.base import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Show what latents are like: statistics of their channels, maps of real and synthetic ones, the autoencoder.

    Args:
        output: folder of the page, the pictures and the figures.
        data: folder of latent shards.
        synthetic: folder of synthetic latents (generate with save.latents true makes them, in latents); null shows real
            ones alone.
        autoencoder: the autoencoder package that the latents came from, or a registered one: models:/NAME/VERSION; null
            decodes nothing.
        umap: a second map, by UMAP (pip install voxfleet[umap]); null draws it where that is installed.
        volumes: latents that are decoded to see what the posterior's noise does to them.
        points: volumes of a strip, the ends included.
        batch_size: volumes decoded at once.
        seed: of the noise, and of UMAP.
        resources: where the job runs. Latents are measured by tasks, volumes decoded by one worker.
        tracking: where its record goes.
    """

    output: str
    data: str
    synthetic: str | None = None
    autoencoder: str | None = None
    umap: bool | None = None
    volumes: int = 4
    points: int = 8
    batch_size: int = 8
    seed: int = 0
    resources: ResourcesConfig = field(default_factory=lambda: ResourcesConfig(workers=1))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name, least in (("volumes", 1), ("points", 2), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.resources.workers != 1:
            raise ValueError(f"resources.workers is {self.resources.workers}; one worker decodes: leave it out")
        if self.umap and not self.has_umap:
            raise ValueError("umap is true, but is not installed: pip install 'voxfleet[umap]'")

    @property
    def has_umap(self) -> bool:
        """Whether a map by UMAP is drawn."""
        return self.umap is not False and importlib.util.find_spec("umap") is not None
