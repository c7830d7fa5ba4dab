"""Campaigns: which samples are made, as a pure function of the request."""

import itertools
from dataclasses import dataclass
from typing import Any

from voxfleet.diffusion.noise import row_seed
from voxfleet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CampaignConfig:
    """What is asked for.

    Args:
        samples: synthetic volumes of each class: one number for every class, or a number a class, {HC: 10, TLE: 20}.
        seed: base seed; a sample depends on it, its class and its index alone, so that a larger campaign repeats the
            samples of a smaller one.
    """

    samples: int | dict[str, int] = 16
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = self.samples.values() if isinstance(self.samples, dict) else [self.samples]
        if min(numbers, default=-1) < 0 or not sum(numbers):
            raise ValueError(f"samples is {self.samples}; it must be 0 or more for each class, and not 0 for all")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")


@dataclass(frozen=True)
class Sample:
    """One row of a campaign."""

    label: int
    class_name: str
    index: int
    seed: int
    attempt: int = 0

    @property
    def sample_id(self) -> str:
        """``syn-TLE-0000123``: never changes, however the campaign grows."""
        return f"syn-{self.class_name}-{self.index:07d}"

    @property
    def subject_id(self) -> str:
        """The BIDS form of the id, ``sub-synTLE0000123``."""
        return f"sub-syn{self.class_name}{self.index:07d}"

    @property
    def image_file(self) -> str:
        """Path of its image in the dataset."""
        return f"{self.subject_id}/anat/{self.subject_id}_desc-synth_T1w.nii.gz"


def expand(config: CampaignConfig, classes: tuple[str, ...]) -> list[Sample]:
    """All samples of a campaign, by class and index.

    Raises:
        UserError: if a class is not one of the model's.
    """
    samples = config.samples if isinstance(config.samples, dict) else dict.fromkeys(classes, config.samples)
    for name in samples:
        if name not in classes:
            raise UserError(f"campaign.samples names class {name!r}; the model knows {', '.join(classes)}")
    return [
        Sample(label, name, index, row_seed(config.seed, label, index))
        for label, name in enumerate(classes)
        for index in range(samples.get(name, 0))
    ]


def units(samples: list[Sample], size: int) -> dict[str, list[dict[str, Any]]]:
    """Batches of at most ``size`` samples of one class, named by their first sample.

    A sample's batch and its place in it (index modulo ``size``) never change, whichever samples are asked for: matrix
    products may round a row by its place.
    """
    parts = [list(part) for _, part in itertools.groupby(samples, key=lambda s: (s.label, s.index // size))]
    return {part[0].sample_id: [vars(sample) for sample in part] for part in parts}
