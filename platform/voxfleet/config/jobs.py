"""The configuration of each job: one frozen dataclass, made of those that stand beside each component."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from voxfleet import storage
from voxfleet.config.overrides import check_value, with_keys
from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.audit import AuditConfig
from voxfleet.data.cohort import SimulationConfig
from voxfleet.data.geometry import geometry_of
from voxfleet.data.latents import check_dtype
from voxfleet.data.plan import LoadingConfig
from voxfleet.data.preprocess import PreprocessConfig, grid_affine
from voxfleet.data.sources import SourceConfig, SplitConfig, check_classes, check_suffix
from voxfleet.diffusion.process import FLOW, DiffusionConfig, Process
from voxfleet.diffusion.samplers import SamplerConfig, sampler_table
from voxfleet.models import DiT3DConfig
from voxfleet.models.vae import AutoencoderConfig
from voxfleet.search.study import SearchConfig
from voxfleet.tracking.base import TrackingConfig
from voxfleet.train.autoencoder import AutoencoderLossConfig
from voxfleet.train.diffusion import AugmentConfig
from voxfleet.train.optim import OptimConfig
from voxfleet.train.speed import BenchmarkSettings
from voxfleet.train.step import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class CohortConfig:
    """Simulate a BIDS dataset of healthy controls (HC) and people with temporal lobe epilepsy (TLE).

    Args:
        output: folder of the new dataset.
        subjects: number of subjects; subject i is the same whatever their number.
        simulation: what they look like.
        resources: where the job runs.
        tracking: where its record goes.
    """

    output: str
    subjects: int = 48
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.subjects < 1:
            raise ValueError(f"subjects is {self.subjects}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn a cohort of NIfTI images into volume shards.

    Args:
        output: folder of the shards.
        source: where the images and labels are.
        preprocess: the grid and intensities of the volumes.
        split: the split by subject.
        audit: what counts as the same image under two subject ids, and what then happens.
        max_skipped: largest share of images that may be left out because they cannot be used.
        subjects_per_shard: images of a shard; a shard is one task.
        resources: where the job runs.
        tracking: where its record goes.
    """

    output: str
    source: SourceConfig
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    max_skipped: float = 0.05
    subjects_per_shard: int = 16
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.max_skipped < 1:
            raise ValueError(f"max_skipped is {self.max_skipped}; it must be in [0, 1)")
        if self.subjects_per_shard < 1:
            raise ValueError(f"subjects_per_shard is {self.subjects_per_shard}; it must be at least 1")
        if self.source.masks and self.preprocess.skull_strip != "masks":
            raise ValueError(
                f"source.masks is {self.source.masks!r} but preprocess.skull_strip {self.preprocess.skull_strip}; "
                "set preprocess.skull_strip to masks"
            )
        if self.preprocess.skull_strip == "masks" and self.source.bids and not self.source.masks:
            raise ValueError("preprocess.skull_strip is masks; source.masks must say where those of source.bids are")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What both trainings share.

    Args:
        name: name of the run; the same output and name continue it.
        output: folder of runs.
        data: folder of the shards to train on.
        package: folder of the package that is made; null puts it into the run's folder. The package of the lowest
            validation loss is in the run's folder always, as best.
        loading: how the shards reach the workers.
        optim: optimizer and learning rate.
        trainer: length and precision of the training.
        resources: where the job runs, and the number of workers.
        tracking: where its record goes.
    """

    name: str
    output: str
    data: str
    package: str | None = None
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        name = self.name
        if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
            raise ValueError(f"name is {name!r}; it must be letters, digits, '-', '_' or '.'")

    @property
    def package_folder(self) -> str:
        """Where the package goes."""
        return self.package or storage.join(self.output, self.name, "package")


@dataclass(frozen=True, kw_only=True)
class TrainVaeConfig(TrainingConfig):
    """Train an autoencoder (MONAI's AutoencoderKlMaisi) on volume shards.

    Args:
        model: the autoencoder's architecture.
        loss: what it is trained for.
    """

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainer.compile:  # torch 2.13 fails on convolutions whose weights are channels_last_3d
            raise ValueError("trainer.compile is true; torch.compile fails on the autoencoder: set it to false")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Turn volume shards into latent shards (mean and log-variance of each volume's posterior).

    Args:
        output: folder of the latent shards.
        data: folder of volume shards.
        autoencoder: folder of the autoencoder package.
        mirrored: encode the mirror image of each training head too, as a row of its own; only where the volumes say
            that it is a head of the same class (source.mirrored of prepare).
        batch_size: volumes encoded at once.
        dtype: float32, or float16 to halve the shards.
        resources: where the job runs, and the number of actors.
        tracking: where its record goes.
    """

    output: str
    data: str
    autoencoder: str
    mirrored: bool = False
    batch_size: int = 4
    dtype: str = "float32"
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        check_dtype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Mosaics of samples of each class while training, drawn by the averaged weights.

    Args:
        every: epochs between mosaics, of those with a validation (and one at the end); 0 for none.
        per_class: samples of each class; they start from the same noise at every time.
        sampler: how they are drawn.
        autoencoder: package that decodes them; null shows the first channel of the latents.
    """

    every: int = 0
    per_class: int = 4
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=20))
    autoencoder: str | None = None

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every is {self.every}; it must be 0 or more")
        if self.per_class < 1:
            raise ValueError(f"per_class is {self.per_class}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingConfig):
    """Train a DiT3D on latent shards.

    Args:
        model: the network; its input_size, in_channels and num_classes must be those of the latents.
        diffusion: the noise, the target and the loss.
        augment: changes of the latents.
        samples: pictures of samples while training.
        gradient_checkpointing: compute each block again in the backward pass: less memory, a third more time.
    """

    model: DiT3DConfig = field(default_factory=DiT3DConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.learn_sigma and self.diffusion.schedule == FLOW:
            raise ValueError("model.learn_sigma is true, but diffusion.schedule flow has no variance; set it to false")
        if self.model.learn_sigma and self.diffusion.target == "x0":
            # an error of x0 does not shrink with the noise, so the bound's first terms would drown the loss
            raise ValueError("model.learn_sigma is true, which needs diffusion.target epsilon or v; set it to false")
        if self.samples.every:
            try:
                sampler_table(self.samples.sampler, Process(self.diffusion))
            except ValueError as error:
                raise ValueError(f"samples.sampler.{error}") from error

    @property
    def warnings(self) -> list[str]:
        """What will not work although it is allowed."""
        found = []
        numbers = self.model.patch_numbers
        if self.diffusion.target != "x0" and numbers > self.model.hidden_size:
            found.append(
                f"a patch holds {numbers} numbers, more than model.hidden_size ({self.model.hidden_size}): its noise "
                "cannot be predicted; use diffusion.target x0, a smaller patch or a larger hidden_size"
            )
        if self.model.is_cut:
            found.append(
                "no block reaches beyond its window, so the parts of a volume know nothing of each other; set "
                "model.strided_every 2 or model.global_every 4"
            )
        return found


# of training: where a trial runs and how long is the search's own business, and what it trains on is the question
_NOT_SEARCHED = (
    *("config", "name", "output", "data", "package", "resources", "tracking", "samples", "search", "loading.mode"),
    *(f"trainer.{key}" for key in ("epochs", "max_failures", "keep_newest", "keep_best")),
)
_CHANGES_LOSS = ("diffusion.", "model.learn_sigma")  # what the validation loss means


@dataclass(frozen=True, kw_only=True)
class TuneConfig(TrainConfig):
    """Search what to train: trials of a training with other keys, ranked by what validation measures.

    Args:
        search: which keys, which values, and how.
    """

    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        required = {"name": self.name, "output": self.output, "data": self.data}
        for domain in self.search.domains:
            if any(f"{domain.key}.".startswith(f"{name}.") for name in _NOT_SEARCHED):
                raise ValueError(f"search.space.{domain.key} cannot be searched: it is the same for all trials")
            for value in domain.values:
                try:
                    check_value(TrainConfig, "train", required, domain.key, value)
                except ValueError as error:
                    raise ValueError(f"search.space.{domain.key}.{domain.kind}: {error}") from error
            if domain.key.startswith(_CHANGES_LOSS) and self.search.metric.startswith("val_loss"):
                raise ValueError(
                    f"search.metric is {self.search.metric!r}, which does not compare over {domain.key}; set it to "
                    "val_error"
                )

    def trial(self, keys: Mapping[str, Any]) -> TrainConfig:
        """The training with these keys, without pictures.

        Raises:
            ValueError: if they do not go together.
        """
        base = {entry.name: getattr(self, entry.name) for entry in fields(TrainConfig)}
        return with_keys(TrainConfig(**{**base, "samples": replace(self.samples, every=0)}), keys)


@dataclass(frozen=True, kw_only=True)
class ModelSummaryConfig:
    """Show a DiT3D's tokens, windows, parameters and FLOPs.

    Args:
        model: the network.
        size: a named size and patch such as S/4 (S, B, L or XL), instead of those of model.
    """

    model: DiT3DConfig = field(default_factory=DiT3DConfig)
    size: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            try:
                DiT3DConfig.named(self.size)
            except ValueError as error:
                raise ValueError(f"size: {error}") from error


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(BenchmarkSettings):
    """Measure forward pass, training step and sampling on whatever device is there.

    Args:
        output: folder of the table, the figures and the plot.
        resources: where the job runs; with several workers, that many cases are measured at once.
        tracking: where its record goes.
    """

    output: str
    resources: ResourcesConfig = field(default_factory=lambda: ResourcesConfig(workers=1))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True, kw_only=True)
class ImportVaeConfig:
    """Turn the checkpoint of an AutoencoderKlMaisi that was trained elsewhere into an autoencoder package.

    The volumes that it is for are those of ``data``; or else give ``shape``, and ``spacing_mm`` or ``affine``.

    Args:
        output: folder of the package.
        checkpoint: its state dict: .safetensors, or .pt of tensors alone.
        model: the architecture that it was trained with.
        data: folder of the volume shards that it will encode; a crop of one tries it out.
        shape: voxels of a volume along each axis.
        spacing_mm: voxel size of a grid that stands as that of prepare with center world does.
        affine: four rows of four numbers, voxel to RAS mm, of any other grid.
        tracking: where its record goes.
    """

    output: str
    checkpoint: str
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    data: str | None = None
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    affine: tuple[tuple[float, float, float, float], ...] | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        given = {name for name in ("shape", "spacing_mm", "affine") if getattr(self, name) is not None}
        if self.data is not None:
            if given:
                raise ValueError(f"{min(given)} is set, but the volumes of data have it; set one of the two")
            return
        if given not in ({"shape", "spacing_mm"}, {"shape", "affine"}):
            raise ValueError(
                f"data is null and {', '.join(sorted(given)) or 'nothing else'} is set; set data to a folder of volume "
                "shards, or else shape and one of spacing_mm and affine"
            )
        try:
            self.model.latent_shape(self.shape or ())
        except ValueError as error:
            raise ValueError(f"shape: {error}") from error
        self.geometry()

    def geometry(self) -> dict[str, Any]:
        """The geometry that ``shape`` and ``spacing_mm`` or ``affine`` give."""
        if self.affine is not None:
            try:
                return geometry_of(self.affine)
            except ValueError as error:
                raise ValueError(f"affine is {self.affine}; {error}") from error
        assert self.shape is not None
        assert self.spacing_mm is not None
        grid = PreprocessConfig(shape=self.shape, spacing_mm=self.spacing_mm)
        return geometry_of(grid_affine(grid, grid.world_center_mm))


@dataclass(frozen=True, kw_only=True)
class ImportLatentsConfig:
    """Turn latents that were made elsewhere into latent shards.

    Each sample has one file (of NumPy, PyTorch or safetensors, or a NIfTI of four axes) of mu (C, D, H, W), or of
    arrays named mu and logvar or sigma. Without these a draw is mu itself: logvar is then -30.

    Args:
        output: folder of the latent shards.
        latents: folder of the files.
        table: a CSV with the columns subject_id, label, file and, if wanted, split; files that are not full paths
            start at ``latents``.
        classes: the labels as they stand in the table; their order gives the label integers (the first is 0).
        split: the split by subject, where the table has no column split.
        autoencoder: folder of the package of the autoencoder that made them; null if there is none: what is
            trained on them can then not be decoded.
        suffix: BIDS suffix of the images that they were made from.
        dtype: float32, or float16 to halve the shards.
        samples_per_shard: rows of a shard; a shard is one task.
        audit: what counts as the same latent under two subject ids, and what then happens.
        resources: where the job runs.
        tracking: where its record goes.
    """

    output: str
    latents: str
    table: str
    classes: tuple[str, ...] = ("HC", "TLE")
    split: SplitConfig = field(default_factory=SplitConfig)
    autoencoder: str | None = None
    suffix: str = "T1w"
    dtype: str = "float32"
    samples_per_shard: int = 64
    audit: AuditConfig = field(default_factory=AuditConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_suffix(self.suffix)
        check_dtype(self.dtype)
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}; it must be at least 1")
