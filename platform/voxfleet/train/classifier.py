"""Training a classifier of volumes on one device. Letters: B batch, n volumes, D/H/W voxels.

The same seed gives the same weights: bit for bit on a CPU with as many threads.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from voxfleet.models.classifier import Classifier, ClassifierConfig, build_classifier
from voxfleet.models.execution import autocast
from voxfleet.train.fitting import FitConfig, Fitted, fit

_SAGITTAL = 2  # the axis of (B, C, D, H, W) that goes from left to right in RAS


@dataclass(frozen=True, kw_only=True)
class ClassifierAugmentConfig:
    """Changes of the volumes of training.

    Args:
        shift: largest shift along each axis, in voxels.
        gamma: intensities are raised to a power between exp(-gamma) and exp(gamma).
        noise: standard deviation of normal noise that is added; volumes are in [0, 1].
        mirror: mirror every second volume from left to right; only where the data says that a mirrored head is one of
            the same class (source.mirrored of prepare). Off, as it makes left and right alike: which side is smaller
            is a sign of TLE, and healthy heads are not symmetric either.
    """

    shift: int = 1
    gamma: float = 0.2
    noise: float = 0.02
    mirror: bool = False

    def __post_init__(self) -> None:
        for name in ("shift", "gamma", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class ClassifierTrainingConfig(FitConfig):
    """How a classifier is trained: AdamW, a linear warm-up, a cosine to zero; the best epoch is kept.

    Args:
        epochs: number of epochs; in each, every class is drawn equally often.
        batch_size: volumes of a step.
        lr: highest learning rate.
        weight_decay: AdamW's decoupled weight decay.
        warmup: share of the steps over which the rate rises to lr.
        precision: float32, bfloat16, or auto: bfloat16 on a GPU, float32 elsewhere.
        label_smoothing: share of the probability that is spread over all classes.
        validation: share of the subjects to train on that choose the best epoch instead (lowest cross-entropy).
        augment: changes of the volumes.
    """

    label_smoothing: float = 0.1
    validation: float = 0.2
    augment: ClassifierAugmentConfig = field(default_factory=ClassifierAugmentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it must be between 0 and 1")


@dataclass(frozen=True)
class Samples:
    """Volumes and their classes.

    Attributes:
        read: rows (k,) to volumes (k, D, H, W) in [0, 1]; ``array.__getitem__`` where they are in memory.
        rows: those that are meant, (n,).
        labels: the class of each, (n,).
    """

    read: Callable[[np.ndarray], np.ndarray]
    rows: np.ndarray
    labels: np.ndarray

    def batch(self, places: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Volumes (B, 1, D, H, W) float32 and labels (B,) at these ``places`` of ``rows``."""
        volumes = torch.from_numpy(np.asarray(self.read(self.rows[places]), dtype=np.float32))
        return volumes[:, None].to(device), torch.from_numpy(self.labels[places]).to(device)


def train_classifier(
    model_config: ClassifierConfig,
    config: ClassifierTrainingConfig,
    training: Samples,
    validation: Samples,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    draws: int | None = None,
) -> tuple[Classifier, Fitted]:
    """Train one classifier; it has the weights of its best epoch, and its validation ``val_accuracy`` too.

    Args:
        model_config: the network.
        config: how it is trained.
        training: what it is trained on.
        validation: what chooses the best epoch.
        seed: of the initial weights, the order, augmentation and dropout.
        device: where it is trained.
        draws: volumes of an epoch; None for as many as ``training`` holds. The same number makes trainings on sets of
            different sizes equally long.

    Raises:
        UnfitError: if the loss is not finite.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build_classifier(model_config).to(device)

        def order(epoch: int) -> np.ndarray:
            rng = np.random.default_rng((seed, epoch))
            return balanced_epoch(training.labels, draws or len(training.rows), rng)

        def loss_of(places: np.ndarray) -> Tensor:
            volumes, labels = training.batch(places, device)
            with autocast(device, config.precision):
                logits = model(augmented(volumes, config.augment))
                return functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)

        return model, fit(model, config, order, loss_of, lambda: _validated(model, config, validation))


def _validated(model: Classifier, config: ClassifierTrainingConfig, samples: Samples) -> dict[str, float]:
    """Cross-entropy and accuracy of ``samples``."""
    scores = predict(model, samples, batch_size=config.batch_size, precision=config.precision)
    chosen = scores[np.arange(len(scores)), samples.labels]
    return {
        "val_loss": float(-np.log(np.maximum(chosen, 1e-7)).mean()),
        "val_accuracy": float((scores.argmax(axis=1) == samples.labels).mean()),
    }


def predict(model: Classifier, samples: Samples, *, batch_size: int, precision: str = "float32") -> np.ndarray:
    """Probabilities (n, classes) float32 of all ``samples``; leaves the model in evaluation mode."""
    model.eval()
    device = model.head.weight.device
    found = [np.empty((0, model.head.out_features), dtype=np.float32)]
    with torch.inference_mode(), autocast(device, precision):
        for start in range(0, len(samples.rows), batch_size):
            places = np.arange(start, min(start + batch_size, len(samples.rows)))
            volumes, _ = samples.batch(places, device)
            found.append(model(volumes).float().softmax(dim=1).cpu().numpy())
    return np.concatenate(found)


def balanced_epoch(labels: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The rows of one epoch, (draws,): each class equally often, its rows in random order, none again before all were.

    Where ``draws`` is no multiple of the classes there, some classes (at random) come once more.
    """
    there = rng.permutation(np.unique(labels))
    chosen = []
    for place, label in enumerate(there):
        count = (draws - place + len(there) - 1) // len(there)
        rows = np.flatnonzero(labels == label)
        chosen.append(np.concatenate([rng.permutation(rows) for _ in range(-(-count // len(rows)))] or [rows])[:count])
    return rng.permutation(np.concatenate(chosen))


def augmented(volumes: Tensor, config: ClassifierAugmentConfig) -> Tensor:
    """Volumes (B, 1, D, H, W), each changed in its own way, by PyTorch's global generators."""
    size, device = (len(volumes), 1, 1, 1, 1), volumes.device
    if config.mirror:
        volumes = torch.where(torch.rand(size, device=device) < 0.5, volumes.flip(_SAGITTAL), volumes)
    if config.shift:
        shifts = torch.randint(-config.shift, config.shift + 1, (len(volumes), 3)).tolist()
        volumes = torch.stack([_shifted(volume, by) for volume, by in zip(volumes, shifts, strict=True)])
    if config.gamma:
        volumes = volumes.clamp(min=0) ** torch.exp(config.gamma * (2 * torch.rand(size, device=device) - 1))
    if config.noise:
        volumes = volumes + config.noise * torch.randn_like(volumes)
    return volumes


def _shifted(volume: Tensor, by: list[int]) -> Tensor:
    """A volume (1, D, H, W) shifted by so many voxels, with zeros where nothing comes from."""
    pads = [pad for voxels in reversed(by) for pad in (voxels, -voxels)]  # the last axis first; negative ones cut
    return functional.pad(volume, pads)
