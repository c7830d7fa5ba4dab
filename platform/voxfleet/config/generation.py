"""The configuration of the jobs that make synthetic volumes and look at latents."""

from dataclasses import dataclass, field
from typing import Any

from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.campaign import CampaignConfig
from voxfleet.data.nifti import check_dtype
from voxfleet.data.quality import GateConfig
from voxfleet.data.synthetic import SaveConfig
from voxfleet.diffusion.samplers import SamplerConfig
from voxfleet.models.execution import MODES, check_precision
from voxfleet.tracking.base import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class PoolsConfig:
    """The actors beside the workers, which draw samples.

    Args:
        decoders: workers of their own that decode, each as large as one that draws; 0: each worker decodes what it
            drew, which keeps every GPU at work by itself.
        writers: processes that check, compress and write; null: as many as the times measured at the start call for
            and free CPUs allow.
    """

    decoders: int = 0
    writers: int | None = None

    def __post_init__(self) -> None:
        if self.decoders < 0:
            raise ValueError(f"decoders is {self.decoders}; it must be 0 or more")
        if self.writers is not None and self.writers < 1:
            raise ValueError(f"writers is {self.writers}; it must be at least 1, or null")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Generate synthetic volumes as a BIDS derivative dataset, or latent shards, or both.

    Args:
        output: folder of the dataset.
        model: folder of the model package, or a registered one: models:/NAME/VERSION or models:/NAME@ALIAS.
        autoencoder: the autoencoder package that the model's latents came from, likewise; null where no volumes are
            written.
        campaign: how many samples of which class, and the base seed.
        sampler: how latents are drawn.
        gate: which samples are kept.
        save: what is written of each.
        precision: of the network: float32, bfloat16, or auto: bfloat16 on a GPU, float32 elsewhere.
        mode: of the network: eager, compiled, graphs (compiled, with CUDA graphs), or auto: compiled on a GPU, eager
            elsewhere.
        decode_precision: of the autoencoder: float32, bfloat16, float16, or auto: float16 on a GPU, float32 elsewhere.
        batch_size: samples drawn at once; always this many, so that every sample is the same in any batch.
        decode_batch_size: samples decoded at once, likewise.
        pools: the actors beside the workers.
        resources: where the job runs, and the number of workers.
        tracking: where its record goes.
        verify: read what is there first, and make again what is missing or damaged.
        dry_run: say what would be made; draw a few batches, and say how long all of them and how many bytes they take.
    """

    output: str
    model: str
    autoencoder: str | None = None
    campaign: CampaignConfig = field(default_factory=CampaignConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    precision: str = "auto"
    mode: str = "auto"
    decode_precision: str = "auto"
    batch_size: int = 8
    decode_batch_size: int = 8
    pools: PoolsConfig = field(default_factory=PoolsConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    verify: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "decode_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_precision(self.precision)
        try:
            check_precision(self.decode_precision, training=True)
        except ValueError as error:
            raise ValueError(f"decode_{error}") from error
        if self.mode not in ("auto", *MODES):
            raise ValueError(f"mode is {self.mode!r}; it must be one of auto, {', '.join(MODES)}")


@dataclass(frozen=True, kw_only=True)
class RegenerateConfig:
    """Make one sample of a campaign again, by itself, and compare it with the one that is there.

    Args:
        sample: its id, such as syn-TLE-0000123.
        dataset: output folder of generate.
        model: the model package, where it is no longer where the campaign found it.
        autoencoder: the autoencoder package, likewise.
        output: folder into which the sample is written; null only compares.
        tracking: the store of registered packages.
    """

    sample: str
    dataset: str
    model: str | None = None
    autoencoder: str | None = None
    output: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Decode latent shards to a BIDS derivative dataset of volumes.

    Args:
        output: folder of the dataset.
        data: folder of latent shards.
        autoencoder: the package of the autoencoder that made the latents, or a registered one: models:/NAME/VERSION.
        dtype: of the voxels: int16 with a slope, or float32.
        compress: .nii.gz; false gives .nii, which are larger and written faster.
        precision: of the autoencoder: float32, bfloat16, float16, or auto: float16 on a GPU, float32 elsewhere.
        batch_size: latents decoded at once.
        resources: where the job runs, and the number of actors.
        tracking: where its record goes.
    """

    output: str
    data: str
    autoencoder: str
    dtype: str = "int16"
    compress: bool = True
    precision: str = "auto"
    batch_size: int = 8
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        check_precision(self.precision, training=True)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")


_SEEDS, _SUBJECTS = ("model", "seeds", "label"), ("data", "subjects")  # the two ways, by their keys


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig:
    """Show the way from one volume to another: volumes at even steps along the arc between two latents.

    Give model, seeds and label for a way between two samples (the noise that they start from), or else data and
    subjects for one between two encoded subjects (its ends are then reconstructions of their images).

    Args:
        output: folder of the picture, the volumes and the figures.
        autoencoder: the autoencoder package that the latents came from, or a registered one: models:/NAME/VERSION.
        model: the model package, likewise.
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
