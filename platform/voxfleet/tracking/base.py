"""What a tracker does, one that does nothing, and one that remembers (for tests)."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the record of a job goes.

    Args:
        uri: an MLflow store, such as sqlite:///mlflow.db or http://HOST:5000; null takes MLFLOW_TRACKING_URI, and keeps
            no record where that is not set.
        experiment: the MLflow experiment that holds the job's run.
    """

    uri: str | None = None
    experiment: str = "voxfleet"

    @property
    def resolved_uri(self) -> str | None:
        """The store that is meant, or None for no record."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None


class Tracker(Protocol):
    """The record of one job, written by one process."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record nested parameters under dotted names."""
        ...

    def log_metrics(self, points: list[dict[str, float]]) -> None:
        """Record points, each with its ``step`` and any metrics."""
        ...

    def log_artifact(self, path: str) -> None:
        """Keep a copy of a local file."""
        ...


class NullTracker:
    """Keeps nothing."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, points: list[dict[str, float]]) -> None:
        """Do nothing."""

    def log_artifact(self, path: str) -> None:
        """Do nothing."""


@dataclass
class MemoryTracker:
    """Keeps everything in lists."""

    params: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, float]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Remember the parameters."""
        self.params.update(flatten(params))

    def log_metrics(self, points: list[dict[str, float]]) -> None:
        """Remember the points."""
        self.points.extend(points)

    def log_artifact(self, path: str) -> None:
        """Remember the path."""
        self.artifacts.append(path)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextlib.contextmanager
def open_tracker(config: TrackingConfig, name: str, key: str) -> Iterator[Tracker]:
    """The tracker that ``config`` asks for; ``key`` (the job's output) finds the record of an earlier try again.

    Raises:
        UserError: if the store cannot be opened.
    """
    if config.resolved_uri is None:
        yield NullTracker()
        return
    from voxfleet.tracking.mlflow import mlflow_run  # mlflow takes seconds to import

    with mlflow_run(config, name, key) as tracker:
        yield tracker
