"""Voxfleet: latent diffusion transformers for 3D brain MRI, trained and sampled on any Ray cluster."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxfleet.packages import load_autoencoder, load_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_autoencoder", "load_model"]


def __getattr__(name: str) -> Any:
    """Import the exported names when they are first used: ``import voxfleet`` costs nothing."""
    if name in __all__:
        return getattr(importlib.import_module("voxfleet.packages"), name)
    raise AttributeError(f"module 'voxfleet' has no attribute {name!r}")
