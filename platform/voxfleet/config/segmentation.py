"""The configuration of the job that trains a segmenter of the hippocampi, and of who uses one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from voxfleet.config.resources import ResourcesConfig
from voxfleet.models.segmenter import SegmenterConfig
from voxfleet.tracking.base import TrackingConfig
from voxfleet.train.segmenter import SegmenterTrainingConfig


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Values of the hippocampi in label maps.

    Args:
        left: of the left one; 17 in FreeSurfer's aseg.
        right: of the right one; 53 in FreeSurfer's aseg.
    """

    left: int = 1
    right: int = 2

    def __post_init__(self) -> None:
        if self.left == self.right:
            raise ValueError(f"left and right are both {self.left}; give the two values of the label maps")

    @property
    def values(self) -> tuple[int, int]:
        """Left, right."""
        return self.left, self.right


@dataclass(frozen=True, kw_only=True)
class TrainSegmenterConfig:
    """Train a segmenter of both hippocampi, by which evaluate measures them.

    Args:
        output: folder of the package, its figures and a picture.
        volumes: folder of the real volume shards; it is trained on split train, chosen by val, and tested on test.
        labels: where the label maps of the images are: a BIDS derivative dataset (sub-*_dseg.nii.gz), or a table with
            the columns subject_id and path; subjects without one are left out.
        label_values: of the hippocampi in the label maps.
        model: the network.
        training: how it is trained.
        seed: of the initial weights, the order and the augmentation.
        resources: where the job runs; one worker trains.
        tracking: where its record goes.
    """

    output: str
    volumes: str
    labels: str
    label_values: LabelsConfig = field(default_factory=LabelsConfig)
    model: SegmenterConfig = field(default_factory=SegmenterConfig)
    training: SegmenterTrainingConfig = field(default_factory=SegmenterTrainingConfig)
    seed: int = 0
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class HippocampiConfig:
    """How the hippocampi are measured; with neither key they are not.

    Args:
        segmenter: package of a segmenter (train-segmenter makes one), for all sets.
        maps: label maps made elsewhere, of each set by its name, {real: FOLDER, synthetic: FOLDER}, each as the labels
            of train-segmenter.
        label_values: of the hippocampi in these maps.
    """

    segmenter: str | None = None
    maps: Mapping[str, str] | None = None
    label_values: LabelsConfig = field(default_factory=LabelsConfig)

    def __post_init__(self) -> None:
        if self.segmenter and self.maps:
            raise ValueError("segmenter and maps are both set; all sets must be measured in one way: set one of them")
