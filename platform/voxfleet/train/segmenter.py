"""Training a segmenter of the hippocampi on one device. Letters: B batch, n volumes, D/H/W voxels, S structures.

Targets are the shares of each voxel that the structures fill. The loss is the cross-entropy with these and a Dice loss
with squares in its denominator (Milletari et al., "V-Net", 2016), 1 - 2 sum(pq) / (sum(p^2) + sum(q^2)). Both are least
where the prediction is the share itself, so that a sum of shares is a volume (without squares Dice wants 0 or 1).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from voxfleet.models.execution import autocast
from voxfleet.models.segmenter import Segmenter, SegmenterConfig, build_segmenter, structure_voxels
from voxfleet.train.fitting import FitConfig, Fitted, fit

_FULL = 255  # shares are kept as bytes
_SAGITTAL = 2  # the axis of (B, C, D, H, W) that goes from left to right in RAS
_MIRRORED = (0, 2, 1)  # background, and left for right


@dataclass(frozen=True, kw_only=True)
class SegmenterAugmentConfig:
    """Changes of the volumes of training; heads are also mirrored, left then being right.

    Args:
        blur: largest standard deviation of a Gaussian blur, in voxels: synthetic volumes are less sharp than real ones.
        gamma: intensities are raised to a power between exp(-gamma) and exp(gamma).
        noise: largest standard deviation of normal noise that is added; volumes are in [0, 1].
    """

    blur: float = 0.7
    gamma: float = 0.3
    noise: float = 0.03

    def __post_init__(self) -> None:
        for name in ("blur", "gamma", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class SegmenterTrainingConfig(FitConfig):
    """How a segmenter is trained: AdamW, a linear warm-up, a cosine to zero; the best epoch is kept.

    Args:
        epochs: number of epochs.
        batch_size: volumes of a step.
        lr: highest learning rate.
        weight_decay: AdamW's decoupled weight decay.
        warmup: share of the steps over which the rate rises to lr.
        precision: float32, bfloat16, or auto: bfloat16 on a GPU, float32 elsewhere.
        augment: changes of the volumes.
    """

    epochs: int = 60
    batch_size: int = 4
    lr: float = 1e-2
    augment: SegmenterAugmentConfig = field(default_factory=SegmenterAugmentConfig)


@dataclass(frozen=True)
class LabelledVolumes:
    """Volumes, and where their hippocampi are.

    Attributes:
        volumes: (n, D, H, W) in [0, 1].
        shares: (n, S, D, H, W) uint8, the share of each voxel that a structure fills, of 255.
    """

    volumes: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, volumes: np.ndarray, filled: np.ndarray) -> "LabelledVolumes":
        """From shares in [0, 1], (n, S, D, H, W)."""
        return cls(volumes.astype(np.float16), np.rint(filled * _FULL).astype(np.uint8))

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, rows: np.ndarray) -> "LabelledVolumes":
        return LabelledVolumes(self.volumes[rows], self.shares[rows])

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Volumes (B, 1, D, H, W), and shares of background and structures (B, 1 + S, D, H, W), float32."""
        volumes = torch.from_numpy(self.volumes.astype(np.float32))[:, None].to(device)
        shares = torch.from_numpy(self.shares).to(device).float() / _FULL
        return volumes, torch.cat([1 - shares.sum(dim=1, keepdim=True), shares], dim=1)

    @property
    def voxels(self) -> np.ndarray:
        """True volume of each structure in voxels, (n, S)."""
        return self.shares.sum(axis=(2, 3, 4), dtype=np.int64) / _FULL


def train_segmenter(
    model_config: SegmenterConfig,
    config: SegmenterTrainingConfig,
    training: LabelledVolumes,
    validation: LabelledVolumes,
    *,
    seed: int,
    device: str | torch.device = "cpu",
) -> tuple[Segmenter, Fitted]:
    """Train a segmenter; it has the weights of the epoch with the lowest validation loss.

    Raises:
        UnfitError: if the loss is not finite.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build_segmenter(model_config).to(device)

        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng((seed, epoch)).permutation(len(training))

        def loss_of(rows: np.ndarray) -> Tensor:
            volumes, shares = augmented(*training[rows].tensors(device), config.augment)
            with autocast(device, config.precision):
                logits = model(volumes)
            return loss_function(logits.float(), shares)

        return model, fit(model, config, order, loss_of, lambda: _validated(model, config, validation))


def loss_function(logits: Tensor, shares: Tensor) -> Tensor:
    """The mean loss of logits (B, 1 + S, D, H, W), of which ``shares`` are the targets."""
    from monai.losses import DiceLoss  # here, as MONAI takes seconds to import

    dice = DiceLoss(softmax=True, squared_pred=True, include_background=False, batch=True)
    return functional.cross_entropy(logits, shares) + dice(logits, shares)


def augmented(volumes: Tensor, shares: Tensor, config: SegmenterAugmentConfig) -> tuple[Tensor, Tensor]:
    """Volumes (B, 1, D, H, W) and shares (B, 1 + S, D, H, W) of a batch changed alike, by PyTorch's generators."""
    size, device = (len(volumes), 1, 1, 1, 1), volumes.device
    mirrored = torch.rand(size, device=device) < 0.5
    volumes = torch.where(mirrored, volumes.flip(_SAGITTAL), volumes)
    shares = torch.where(mirrored, shares.flip(_SAGITTAL)[:, _MIRRORED], shares)
    volumes = volumes.clamp(min=0) ** torch.exp(config.gamma * (2 * torch.rand(size, device=device) - 1))
    volumes = torch.cat([_blurred(v, config.blur * float(torch.rand(()))) for v in volumes.split(1)])
    noise = config.noise * torch.rand(size, device=device) * torch.randn_like(volumes)
    return torch.where(volumes > 0, volumes + noise, volumes), shares  # none outside a head that was cut out


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """``x`` (1, 1, D, H, W), blurred by a Gaussian of ``sigma`` voxels, of three points an axis."""
    if sigma <= 0:
        return x
    side = float(np.exp(-0.5 / sigma**2))
    kernel = torch.tensor([side, 1.0, side], device=x.device) / (1 + 2 * side)
    for axis in range(3):
        shape, pad = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], pad[axis] = 3, 1
        x = functional.conv3d(x, kernel.reshape(shape), padding=tuple(pad))
    return x


@torch.inference_mode()
def _validated(model: Segmenter, config: SegmenterTrainingConfig, samples: LabelledVolumes) -> dict[str, float]:
    model.eval()
    device = next(model.parameters()).device
    losses = []
    for rows in _batches(len(samples), config.batch_size):
        volumes, shares = samples[rows].tensors(device)
        with autocast(device, config.precision):
            logits = model(volumes)
        losses.append(loss_function(logits.float(), shares) * len(rows))
    return {"val_loss": float(torch.stack(losses).sum()) / len(samples)}


@torch.inference_mode()
def segmented(model: Segmenter, samples: LabelledVolumes, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted volume of each structure in voxels, (n, S), and the Dice coefficient of its majority voxels, (n, S)."""
    model.eval()
    device = next(model.parameters()).device
    voxels, dice = [], []
    for rows in _batches(len(samples), batch_size):
        volumes, shares = samples[rows].tensors(device)
        logits = model(volumes)
        voxels.append(structure_voxels(logits).cpu().numpy())
        both = [functional.one_hot(x.argmax(dim=1), x.shape[1])[..., 1:] for x in (logits, shares)]
        overlap, total = (both[0] * both[1]).sum(dim=(1, 2, 3)), (both[0] + both[1]).sum(dim=(1, 2, 3))
        dice.append((2 * overlap / total.clamp(min=1)).cpu().numpy())
    return np.concatenate(voxels), np.concatenate(dice)


def _batches(n: int, size: int) -> list[np.ndarray]:
    return np.array_split(np.arange(n), -(-n // size))
