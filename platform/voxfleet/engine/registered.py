"""Packages that jobs are given by a name in the MLflow store, put where all workers can read them."""

import dataclasses
from typing import Any, TypeVar

from voxfleet import storage
from voxfleet.packages import copy_package
from voxfleet.tracking.record import resolve_model

PACKAGES = ".voxfleet/packages"
KEYS = ("model", "autoencoder")
ConfigT = TypeVar("ConfigT")


def located_packages(config: ConfigT, downloads: str) -> ConfigT:
    """``config`` with the folders of its packages, which are put below ``downloads`` where only the store has them."""
    found = {
        key: resolve_model(uri, config.tracking, storage.join(downloads, key))  # type: ignore[attr-defined]
        for key, uri in _packages(config).items()
    }
    return dataclasses.replace(config, **found)  # type: ignore[type-var]


def shared_packages(config: ConfigT, downloads: str, folder: str) -> ConfigT:
    """``config`` with packages that lie below ``downloads``, on this machine, copied into ``folder``."""
    copied = {
        key: copy_package(uri, storage.join(folder, PACKAGES, key))
        for key, uri in _packages(config).items()
        if uri.startswith(downloads)
    }
    return dataclasses.replace(config, **copied)  # type: ignore[type-var]


def _packages(config: Any) -> dict[str, str]:
    return {key: uri for key in KEYS if (uri := getattr(config, key, None)) is not None}
