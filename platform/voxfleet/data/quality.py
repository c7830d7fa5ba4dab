"""Measures of a volume, their limits over the training volumes, and the gate that holds samples to them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voxfleet.metrics.anatomy import symmetry

_BRAIN_LEVEL = 0.2
_BRIGHT_LEVEL = 0.3
CHECKS = ("brain_mean", "p99", "brain_ml", "bright_voxels", "symmetry", "finite")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Which samples are kept; one that is not finite never is. What is rejected is drawn again with its next seed.

    Args:
        limits: hold each volume to the limits of the training volumes, which the model's package knows.
        slack: how far beyond a limit it may lie, as a share of the way from one limit to the other.
        latents: folder of the latents that the model was trained on: what is too near to one of them is a copy of a
            person; null does not look.
        novelty: how far a sample must lie on the way from the nearest training latent to that of another person: 0 is a
            copy, 0.5 halfway.
        attempts: how often a sample is drawn, before the job gives it up.
    """

    limits: bool = True
    slack: float = 0.25
    latents: str | None = None
    novelty: float = 0.25
    attempts: int = 8

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slack) and self.slack >= 0):
            raise ValueError(f"slack is {self.slack}; it must be 0 or more")
        if not 0 < self.novelty < 0.5:
            raise ValueError(f"novelty is {self.novelty}; it must be above 0 and below 0.5")
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; it must be at least 1")


Limits = Mapping[str, Sequence[float]]  # smallest and largest value of each check


def widened(limits: Limits, slack: float) -> Limits:
    """``limits`` with a part (``slack``) of the way between the two added on both sides."""
    return {name: (low - slack * (high - low), high + slack * (high - low)) for name, (low, high) in limits.items()}


def verdict(checks: Mapping[str, float], allowed: Limits) -> str:
    """Why a sample with these ``checks`` is rejected; empty if it is kept."""
    if not checks["finite"]:
        return "not finite"
    for name, (low, high) in allowed.items():
        if not low <= checks[name] <= high:
            return f"{name} is {checks[name]:.4g}, allowed is {low:.4g} to {high:.4g}"
    return ""


def volume_checks(data: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Measures of a volume whose range over the training split bounds what may be generated.

    Args:
        data: (D, H, W), intensities of ``Volume.data``; voxels that are not finite count as 0.
        spacing_mm: Voxel size.

    Returns:
        ``brain_mean`` (mean of voxels above 0.2), ``p99`` (of all voxels), ``brain_ml`` (volume above 0.2),
        ``bright_voxels`` (number above 0.3), ``symmetry`` (Pearson correlation with the left-right mirror image, 0 for
        a constant volume), ``finite`` (1 if all voxels are).
    """
    finite = bool(np.isfinite(data).all())
    data = data if finite else np.where(np.isfinite(data), data, 0)
    brain = data[data > _BRAIN_LEVEL]
    return {
        "brain_mean": float(brain.mean(dtype=np.float64)) if brain.size else 0.0,
        "p99": _p99(data, brain),
        "brain_ml": brain.size * math.prod(spacing_mm) / 1000,
        "bright_voxels": float(np.count_nonzero(data > _BRIGHT_LEVEL)),
        "symmetry": symmetry(data),
        "finite": float(finite),
    }


def _p99(data: np.ndarray, brain: np.ndarray) -> float:
    """The 99th percentile of ``data``, found among its brightest part, ``brain``, where that is large enough."""
    darker = data.size - brain.size
    share = (0.99 * (data.size - 1) - darker) / max(brain.size - 1, 1)
    return float(np.quantile(brain, share)) if brain.size and share >= 0 else float(np.percentile(data, 99))


def limits(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """``{measure: [smallest, largest]}`` over ``rows`` of ``volume_checks``.

    Raises:
        ValueError: if ``rows`` is empty.
    """
    if not rows:
        raise ValueError("rows is empty: limits need at least one volume")
    return {name: [min(row[name] for row in rows), max(row[name] for row in rows)] for name in rows[0]}
