"""How unlike two 2D slices look, by a network that the user gives, such as LPIPS.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018). Letters: B batch, H/W
pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from voxfleet.models.slice_features import read_script


@dataclass(frozen=True)
class SliceDistance:
    """Distances of slices.

    Attributes:
        network: two batches of slices (B, 1, H, W) in [0, 1] to (B,), or (B, 1, 1, 1).
    """

    network: nn.Module

    @torch.inference_mode()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) float32 of slices (B, H, W), intensities in [0, 1].

        Raises:
            ValueError: if the network does not take such slices, or gives something else.
        """
        try:
            found = self.network(x[:, None], y[:, None])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"it does not take two batches of slices {(len(x), 1, *x.shape[1:])} ({reason})"
            ) from error
        if not isinstance(found, Tensor) or found.shape[:1] != x.shape[:1] or found.numel() != len(x):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"for {len(x)} pairs of slices it gives {shape}; it must give ({len(x)},)")
        if not torch.isfinite(found).all() or found.min() < 0:
            raise ValueError("it gives a distance that is negative or not finite")
        return found.flatten().float()


def slice_distance(data: bytes, shapes: Sequence[tuple[int, int]]) -> SliceDistance:
    """The network in a TorchScript file, tried on slices of these ``shapes``.

    Raises:
        ValueError: if it is no TorchScript, or no such network.
    """
    distance = SliceDistance(read_script(data, "cpu"))
    for shape in shapes:
        slices = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(0))
        distance(*slices)
    return distance
