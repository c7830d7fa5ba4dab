"""Where a classifier looks: maps of one volume, by MONAI. Letters: D/H/W voxels."""

import torch
from torch import Tensor

from voxfleet.models.classifier import Classifier

GRAD_CAM, SMOOTH = "Grad-CAM", "smooth gradients"
WAYS = (GRAD_CAM, SMOOTH)
_SAMPLES, _SPREAD = 8, 0.1


class Saliency:
    """What speaks for a class in a volume.

    Grad-CAM (Selvaraju et al., 2017) weights the last feature maps, and is as coarse as these; smooth gradients
    (Smilkov et al., "SmoothGrad", 2017) are the root mean square of the volume's gradients under noise.
    """

    def __init__(self, model: Classifier) -> None:
        """``model`` is in evaluation mode, and keeps the hooks that are put into it."""
        from monai.visualize import GradCAM, SmoothGrad  # here, as MONAI takes seconds to import

        self._model = model
        self._cam = GradCAM(model, "trunk", postprocessing=lambda found: found)
        self._smooth = SmoothGrad(model, stdev_spread=_SPREAD, n_samples=_SAMPLES, verbose=False)

    def __call__(self, volume: Tensor, label: int, seed: int) -> dict[str, Tensor]:
        """By each of WAYS a map (D, H, W) of sum 1, or of 0 where nothing speaks for the class.

        Args:
            volume: (D, H, W) in [0, 1], on the model's device.
            label: the class.
            seed: of the noise.
        """
        x = volume[None, None].float().clone().requires_grad_()
        with torch.enable_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(seed)
            maps = {
                GRAD_CAM: self._cam(x, class_idx=label),
                SMOOTH: self._smooth(x.detach(), index=label, retain_graph=False),
            }
        self._model.zero_grad(set_to_none=True)
        found = {way: torch.as_tensor(values).detach()[0, 0] for way, values in maps.items()}
        return {way: values / values.sum().clamp(min=1e-12) for way, values in found.items()}
