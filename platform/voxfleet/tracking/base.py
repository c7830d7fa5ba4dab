"""What a tracker does, one that does nothing, and one that remembers (for tests)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from voxfleet import storage
from voxfleet.errors import UserError

_FILE = "sqlite:///"


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the record of a job goes.

    Args:
        uri: an MLflow store, such as sqlite:///mlflow.db or http://HOST:5000; null takes MLFLOW_TRACKING_URI, and keeps
            no record where that is not set.
        experiment: the MLflow experiment that holds the job's run.
        model_name: the registered model of which a training's packages become versions; null takes the run's name.
        flush_s: how long the end of the job waits for a store that takes nothing; what is left then is kept in the
            output folder, and the next run of the same command sends it.
    """

    uri: str | None = None
    experiment: str = "voxfleet"
    model_name: str | None = None
    flush_s: float = 30.0

    def __post_init__(self) -> None:
        if self.model_name is not None and (not self.model_name.strip() or set(self.model_name) & set("/:")):
            raise ValueError(f"model_name is {self.model_name!r}; it must be a name without '/' and ':', or null")
        if not self.flush_s >= 0:
            raise ValueError(f"flush_s is {self.flush_s}; it must be at least 0")

    @property
    def resolved_uri(self) -> str | None:
        """The store that is meant, its file by a full path, or None for no record.

        Raises:
            UserError: if it is a file, and relative paths begin in a bucket, or nowhere.
        """
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        if not uri or not uri.startswith(_FILE):
            return uri
        path = storage.absolute(uri.removeprefix(_FILE))
        if not storage.is_local(path):
            raise UserError(f"tracking.uri is {uri}, which cannot lie in a bucket ({path}); name an MLflow server")
        return _FILE + path


class Tracker(Protocol):
    """The record of one job, written by one process. Every call returns at once, and none fails."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record nested parameters under dotted names; those that the record has stay as they are."""
        ...

    def log_metrics(self, points: list[dict[str, float]]) -> None:
        """Record points: any metrics, with their ``step``, and their ``time`` (Unix seconds; now where it is missing).

        The steps of a metric rise: what is not beyond the largest that the record has is passed over, so that steps
        which a restarted job does again are there once. A point without a step is a result: it is recorded where it
        differs from the one before.
        """
        ...

    def log_artifact(self, uri: str, folder: str = "") -> None:
        """Keep a copy of the file at ``uri`` in ``folder`` of the record; the file must stay until it is sent."""
        ...

    def log_document(self, name: str, document: Any) -> None:
        """Keep a JSON document as the file ``name`` of the record."""
        ...

    def log_reference(self, name: str, uri: str) -> None:
        """Record under ``name`` where something large stands, such as a checkpoint; a later call replaces it."""
        ...

    def log_dataset(self, name: str, uri: str, digest: str, profile: Mapping[str, Any] | None = None) -> None:
        """Record what the job reads: its folder, the digest of its content, and a few figures about it."""
        ...

    def register_package(self, folder: str, fingerprint: str, alias: str) -> None:
        """Make the finished package in ``folder`` a version of the registered model, and point ``alias`` to it.

        A package that is registered already (by its fingerprint) only gets the alias. The folder must stay as it is
        until it is sent.
        """
        ...


class NullTracker:
    """Keeps nothing."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, points: list[dict[str, float]]) -> None:
        """Do nothing."""

    def log_artifact(self, uri: str, folder: str = "") -> None:
        """Do nothing."""

    def log_document(self, name: str, document: Any) -> None:
        """Do nothing."""

    def log_reference(self, name: str, uri: str) -> None:
        """Do nothing."""

    def log_dataset(self, name: str, uri: str, digest: str, profile: Mapping[str, Any] | None = None) -> None:
        """Do nothing."""

    def register_package(self, folder: str, fingerprint: str, alias: str) -> None:
        """Do nothing."""


@dataclass
class MemoryTracker:
    """Keeps everything."""

    params: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, float]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    documents: dict[str, Any] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, tuple[str, str]] = field(default_factory=dict)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Remember the parameters."""
        self.params = flatten(params) | self.params

    def log_metrics(self, points: list[dict[str, float]]) -> None:
        """Remember the points."""
        self.points.extend(points)

    def log_artifact(self, uri: str, folder: str = "") -> None:
        """Remember the address."""
        self.artifacts.append(uri)

    def log_document(self, name: str, document: Any) -> None:
        """Remember the document."""
        self.documents[name] = document

    def log_reference(self, name: str, uri: str) -> None:
        """Remember the address."""
        self.references[name] = uri

    def log_dataset(self, name: str, uri: str, digest: str, profile: Mapping[str, Any] | None = None) -> None:
        """Remember the dataset."""
        self.datasets[name] = {"uri": uri, "digest": digest, "profile": profile}

    def register_package(self, folder: str, fingerprint: str, alias: str) -> None:
        """Remember the folder and the fingerprint under the alias."""
        self.packages[alias] = (folder, fingerprint)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
