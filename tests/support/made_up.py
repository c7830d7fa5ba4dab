"""Documents that are as those of our jobs, for tests in which a package is only moved."""

from voxfleet.models import DiT3DConfig
from voxfleet.packages import architecture

MODEL = {  # what a model package says beside its weights
    "architecture": architecture(
        DiT3DConfig(in_channels=1, input_size=(4, 4, 4), patch_size=(2, 2, 2), hidden_size=24, depth=1, num_heads=2)
    ),
    **{"diffusion": {"target": "x0"}, "mean": [0.0], "std": [1.0], "geometry": {}, "classes": ["HC", "TLE"]},
    **{"limits": {}, "suffix": "T1w", "autoencoder": None},
}
