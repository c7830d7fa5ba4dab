"""Networks: single-device maths that knows nothing of Ray, DDP or configuration files."""

from voxfleet.models.dit3d import DiT3D, DiT3DConfig

__all__ = ["DiT3D", "DiT3DConfig"]
