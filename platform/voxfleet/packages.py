"""Packages: folders of ``model.safetensors`` and ``config.json`` that hold a trained model and all that its use needs.

The fingerprint of a package is the sha256 over its safetensors bytes and the canonical JSON of its architecture.
Letters: B batch, C channels, D/H/W voxels.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from voxfleet import storage
from voxfleet.diffusion.guidance import guided
from voxfleet.diffusion.noise import sampling_noise
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import SamplerConfig, sample, sampler_table
from voxfleet.documents import check_document, check_geometry, check_suffix
from voxfleet.errors import UserError
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.classifier import Classifier, ClassifierConfig, build_classifier
from voxfleet.models.execution import (
    MODES,
    PRECISIONS,
    autocast,
    check_precision,
    for_inference,
    resolve_precision,
)
from voxfleet.models.segmenter import Segmenter, SegmenterConfig, build_segmenter, structure_voxels
from voxfleet.models.vae import AutoencoderConfig, build_autoencoder, decode, encode

FORMAT_VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
M = TypeVar("M", bound=nn.Module)
_KEYS: dict[str, dict[str, Any]] = {  # that use of a package needs, by its kind
    "model": {
        **{"diffusion": dict[str, Any], "mean": list[float], "std": list[float], "classes": list[str]},
        **{"limits": dict[str, list[float]], "suffix": str, "autoencoder": str | None},
    },
    "autoencoder": {"shape": list[int]},
    "classifier": {"classes": list[str], "shape": list[int], "region": list[list[int]]},
    "segmenter": {},
}
_CONFIGS: dict[str, dict[str, type]] = {  # of its parts
    "model": {"architecture": DiT3DConfig, "diffusion": DiffusionConfig},
    "autoencoder": {"architecture": AutoencoderConfig},
    "classifier": {"architecture": ClassifierConfig},
    "segmenter": {"architecture": SegmenterConfig},
}
for _keys in _KEYS.values():
    _keys |= {"architecture": dict[str, Any], "fingerprint": str, "geometry": dict[str, Any]}


def fingerprint(weights: bytes, architecture: Mapping[str, Any]) -> str:
    """sha256 over the safetensors bytes and the canonical JSON of the architecture, in hex."""
    canonical = json.dumps(architecture, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(weights + canonical.encode()).hexdigest()


def write_package(folder: str, kind: str, weights: dict[str, Tensor], document: dict[str, Any]) -> str:
    """Write a package of ``kind`` ("model", "autoencoder", "classifier" or "segmenter") and return its fingerprint.

    ``document`` holds the architecture under "architecture", and whatever else use of the model needs. The
    configuration is written last: a folder without it is unfinished.
    """
    data = safetensors.torch.save({name: value.contiguous() for name, value in weights.items()})
    mark = fingerprint(data, document["architecture"])
    storage.write_bytes(storage.join(folder, WEIGHTS), data)
    header = {"format_version": FORMAT_VERSION, "kind": kind, "fingerprint": mark}
    storage.write_json(storage.join(folder, CONFIG), {**header, **document})
    return mark


def copy_package(source: str, target: str) -> str:
    """Copy a package to the folder ``target``, and return that."""
    for name in (WEIGHTS, CONFIG):
        storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))
    return target


def is_complete(folder: str) -> bool:
    """Whether a finished package stands in ``folder``."""
    return storage.exists(storage.join(folder, CONFIG))


def read_package_config(folder: str, kind: str) -> dict[str, Any]:
    """The configuration of a package.

    Raises:
        UserError: if there is no package, or one of another kind or version.
    """
    if not is_complete(folder):
        raise UserError(f"{folder} holds no {kind} package (no {CONFIG}); check the path or run the training job")
    document = storage.read_json(storage.join(folder, CONFIG))
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise UserError(f"{folder} is not a package of kind {kind}; give the folder of a {kind} package")
    if document.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{folder} has another format version than {FORMAT_VERSION}; train again, or use its release")
    uri, remedy = storage.join(folder, CONFIG), "copy or make the package again"
    check_document(document, _KEYS[kind], uri, remedy)
    check_geometry(document["geometry"], uri, remedy, may_lack=kind != "segmenter")
    if kind == "model":
        check_suffix(document["suffix"], uri, remedy)
    if kind == "model" and any(len(ends) != 2 for ends in document["limits"].values()):
        raise UserError(f"{uri}: limits are no pairs of numbers; {remedy}")
    for key, config in _CONFIGS[kind].items():
        try:
            config(**_tuples(document[key]))
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:  # of values of any kind
            raise UserError(f"{uri}: {key}: {error}; {remedy}") from error
    return document


def _read_model(folder: str, kind: str, build: Callable[[dict[str, Any]], M]) -> tuple[dict[str, Any], M]:
    """The configuration of a package, and the model that ``build`` makes of its architecture, with its weights."""
    document = read_package_config(folder, kind)
    data = storage.read_bytes(storage.join(folder, WEIGHTS))
    if fingerprint(data, document["architecture"]) != document["fingerprint"]:
        raise UserError(f"{folder}: {WEIGHTS} does not fit {CONFIG} (fingerprint); copy or make the package again")
    model = build(_tuples(document["architecture"]))
    model.load_state_dict(safetensors.torch.load(data))
    return document, model


@dataclass(frozen=True)
class Autoencoder:
    """A loaded autoencoder: images to latents and back."""

    model: nn.Module
    config: AutoencoderConfig
    fingerprint: str
    dtype: torch.dtype = torch.float32

    @torch.inference_mode()
    def encode(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of volumes (B, 1, D, H, W) in [0, 1], each (B, C, d, h, w)."""
        return encode(self.model, volumes.to(self.dtype))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Volumes (B, 1, D, H, W) in [0, 1] of latents (B, C, d, h, w)."""
        return decode(self.model, latents.to(self.dtype)).clamp(0, 1)


def fitting_autoencoder(folder: str, wanted: str | None, what: str) -> dict[str, Any]:
    """The configuration of the autoencoder package in ``folder``, by which ``what`` is to be decoded.

    Raises:
        UserError: if it is not the one of fingerprint ``wanted``, or none is known.
    """
    document = read_package_config(folder, "autoencoder")
    if wanted is None:
        raise UserError(
            f"{what} comes from latents that were imported without their autoencoder, so nothing of it can be decoded; "
            "import the latents again with --autoencoder"
        )
    if wanted != document["fingerprint"]:
        raise UserError(
            f"{what} comes from latents of autoencoder {wanted[:12]}, but {folder} is {document['fingerprint'][:12]}; "
            "give the autoencoder that made its latents"
        )
    return document


def autoencoder_config(document: dict[str, Any]) -> AutoencoderConfig:
    """The architecture in an autoencoder package's configuration."""
    return AutoencoderConfig(**_tuples(document["architecture"]))


def load_autoencoder(folder: str, device: str | torch.device = "cpu", *, precision: str = "float32") -> Autoencoder:
    """Load an autoencoder package.

    Args:
        folder: the package.
        device: where it runs.
        precision: in which it computes: float32, bfloat16, float16, or auto: see ``resolve_decoding``.

    Raises:
        UserError: if the package is missing or damaged.
        ValueError: if there is no such precision.
    """
    document, model = _read_model(folder, "autoencoder", lambda keys: build_autoencoder(AutoencoderConfig(**keys)))
    check_precision(precision, training=True)
    dtype = PRECISIONS[resolve_decoding(precision, torch.device(device))] or torch.float32
    return Autoencoder(model.eval().to(device, dtype), autoencoder_config(document), document["fingerprint"], dtype)


def resolve_decoding(precision: str, device: torch.device) -> str:
    """``precision`` of an autoencoder, where "auto" is float16 on a GPU and float32 elsewhere.

    float16 keeps more digits of an image than bfloat16: 76 against 57 dB beside float32, with random weights.
    """
    if precision != "auto":
        return precision
    return "float16" if device.type == "cuda" else "float32"


@dataclass(frozen=True)
class ModelBundle:
    """A loaded model package: the network, its process, and what its samples mean.

    ``network`` is ``model`` as it runs: compiled, or itself.
    """

    model: DiT3D
    network: nn.Module
    precision: str
    process: Process
    mean: tuple[float, ...]
    std: tuple[float, ...]
    geometry: dict[str, Any]
    classes: tuple[str, ...]
    limits: dict[str, list[float]]
    autoencoder_fingerprint: str | None
    fingerprint: str

    @property
    def affine(self) -> np.ndarray:
        """Voxel to RAS mm of the training volumes, (4, 4).

        Raises:
            UserError: if it is not known, as the latents were imported without their autoencoder.
        """
        if not self.geometry:
            raise UserError("the model has no affine: its latents were imported without their autoencoder")
        return np.array(self.geometry["affine"])

    def initial_noise(self, seeds: Sequence[int]) -> Tensor:
        """What the samples of these seeds start from, (B, C, d, h, w)."""
        return self._noise(self._keys(seeds), 0)

    @torch.inference_mode()
    def sample(
        self,
        labels: Sequence[int | str],
        seeds: Sequence[int],
        sampler: str | SamplerConfig = "ddim",
        *,
        noise: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Latents (B, C, d, h, w) in the autoencoder's space, one for each label and seed.

        Sample i depends on labels[i], seeds[i] and the sampler alone (and noise[i], where that is given): to float
        rounding in any batch, and bit for bit at the same place of batches of one shape.

        Args:
            labels: the class of each sample, as a name or a number.
            seeds: the seed of each sample.
            sampler: the name of a sampler, or all of its configuration.
            noise: what to start from, (B, C, d, h, w), instead of the ``initial_noise`` of the seeds.
            options: other fields of SamplerConfig: steps, guidance_scale, ...

        Raises:
            ValueError: if a label or an option is not known, the sampler not one of this model's process, or the noise
                of another shape.
        """
        config = SamplerConfig(name=sampler) if isinstance(sampler, str) else sampler
        known = [field.name for field in dataclasses.fields(config) if field.name != "name"]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"option {unknown[0]!r} is not known; the options are {', '.join(known)}")
        table = sampler_table(dataclasses.replace(config, **options), self.process)
        keys = self._keys(seeds)
        device = keys.device
        y = torch.tensor([self._label(label) for label in labels], dtype=torch.int64, device=device)
        if len(keys) != len(y):
            raise ValueError(f"there are {len(y)} labels and {len(keys)} seeds; give one seed for each label")
        start = self._noise(keys, 0) if noise is None else noise.to(device)
        if start.shape != (len(y), *self._shape):
            raise ValueError(f"noise has shape {tuple(start.shape)}; it must be {(len(y), *self._shape)}")
        denoiser = guided(self.network, y, self.model.config.num_classes)
        with autocast(device, self.precision):
            x = sample(denoiser, table, start, lambda step: self._noise(keys, step))
        mean, std = (torch.tensor(v, device=device).reshape(1, -1, 1, 1, 1) for v in (self.mean, self.std))
        return x * std + mean

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.model.config.in_channels, *self.model.config.input_size

    def _keys(self, seeds: Sequence[int]) -> Tensor:
        return torch.tensor(seeds, dtype=torch.int64, device=next(self.model.parameters()).device)

    def _noise(self, keys: Tensor, step: int) -> Tensor:
        return sampling_noise(keys, step, self._shape)

    def _label(self, label: int | str) -> int:
        known = dict(zip(self.classes, range(len(self.classes)), strict=True))
        number = known.get(label, -1) if isinstance(label, str) else label
        if number not in known.values():
            raise ValueError(f"label {label!r} is not known; the classes are {', '.join(self.classes)} (0, 1, ...)")
        return number


def load_model(
    folder: str, device: str | torch.device = "cpu", *, precision: str = "auto", mode: str = "eager"
) -> ModelBundle:
    """Load a model package.

    Args:
        folder: the package.
        device: where the network runs.
        precision: float32, bfloat16, or auto (bfloat16 on a GPU, float32 elsewhere).
        mode: eager, compiled, or graphs (compiled, with CUDA graphs). Each batch size compiles once, and once more
            where only a part of the timesteps is guided.

    Raises:
        UserError: if the package is missing or damaged.
        ValueError: if there is no such precision or mode.
    """
    check_precision(precision)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    document, model = _read_model(folder, "model", lambda keys: DiT3D(DiT3DConfig(**keys)))
    fitting = len(document["mean"]) == len(document["std"]) == model.config.in_channels
    if not fitting or len(document["classes"]) != model.config.num_classes:
        raise UserError(f"{folder}: mean, std or classes do not fit the architecture; copy or make the package again")
    precision = resolve_precision(precision, torch.device(device))
    for_inference(model, precision).to(device)
    return ModelBundle(
        model=model,
        network=MODES[mode](model),
        precision=precision,
        process=Process(DiffusionConfig(**document["diffusion"])),
        mean=tuple(document["mean"]),
        std=tuple(document["std"]),
        geometry=document["geometry"],
        classes=tuple(document["classes"]),
        limits=document["limits"],
        autoencoder_fingerprint=document["autoencoder"],
        fingerprint=document["fingerprint"],
    )


@dataclass(frozen=True)
class ClassifierBundle:
    """A loaded classifier, and what its answers mean.

    Attributes:
        model: of the voxels in ``region``; its ``trunk`` gives feature maps, which a class activation map is made of.
        classes: class names.
        shape: of a volume.
        region: the voxels that it looks at, of each axis.
        geometry: of a volume.
        fingerprint: of the package.
    """

    model: Classifier
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    region: tuple[slice, ...]
    geometry: dict[str, Any]
    fingerprint: str

    @torch.inference_mode()
    def predict(self, volumes: Tensor) -> Tensor:
        """Probabilities (B, classes) of volumes (B, 1, D, H, W) in [0, 1].

        Raises:
            ValueError: if the volumes have another shape than those of the training.
        """
        return self.model(self.looked_at(volumes)).softmax(dim=1)

    @torch.inference_mode()
    def features(self, volumes: Tensor) -> Tensor:
        """Features (B, F), as the last layer sees them, of volumes (B, 1, D, H, W) in [0, 1].

        Raises:
            ValueError: as ``predict``.
        """
        return self.model.features(self.looked_at(volumes))

    def looked_at(self, volumes: Tensor) -> Tensor:
        """The region of volumes (B, 1, D, H, W), on the model's device.

        Raises:
            ValueError: as ``predict``.
        """
        if volumes.shape[1:] != (1, *self.shape):
            raise ValueError(
                f"volumes have shape {tuple(volumes.shape)}; it must be (B, {', '.join(map(str, (1, *self.shape)))})"
            )
        return volumes[(slice(None), slice(None), *self.region)].to(self.model.head.weight.device, torch.float32)


def load_classifier(folder: str, device: str | torch.device = "cpu") -> ClassifierBundle:
    """Load a classifier package.

    Raises:
        UserError: if the package is missing or damaged.
    """
    document, model = _read_model(folder, "classifier", lambda keys: build_classifier(ClassifierConfig(**keys)))
    return ClassifierBundle(
        model=model.eval().to(device),
        classes=tuple(document["classes"]),
        shape=tuple(document["shape"]),
        region=tuple(slice(*ends) for ends in document["region"]),
        geometry=document["geometry"],
        fingerprint=document["fingerprint"],
    )


@dataclass(frozen=True)
class SegmenterBundle:
    """A loaded segmenter of the left and the right hippocampus, and the size of the voxels that it knows."""

    model: Segmenter
    spacing_mm: tuple[float, ...]
    fingerprint: str

    @torch.inference_mode()
    def volumes_ml(self, volumes: Tensor) -> Tensor:
        """Volumes of the left and the right hippocampus in ml, (B, 2), in volumes (B, 1, D, H, W) in [0, 1]."""
        return structure_voxels(self._logits(volumes)) * math.prod(self.spacing_mm) / 1000

    @torch.inference_mode()
    def shares(self, volumes: Tensor) -> Tensor:
        """The share of each voxel that the hippocampi fill, (B, 2, D, H, W), of volumes (B, 1, D, H, W) in [0, 1]."""
        return self._logits(volumes).softmax(dim=1)[:, 1:]

    def _logits(self, volumes: Tensor) -> Tensor:
        return self.model(volumes.to(next(self.model.parameters()).device, torch.float32))


def load_segmenter(folder: str, device: str | torch.device = "cpu") -> SegmenterBundle:
    """Load a segmenter package.

    Raises:
        UserError: if the package is missing or damaged.
    """
    document, model = _read_model(folder, "segmenter", lambda keys: build_segmenter(SegmenterConfig(**keys)))
    return SegmenterBundle(
        model=model.eval().to(device),
        spacing_mm=tuple(document["geometry"]["spacing_mm"]),
        fingerprint=document["fingerprint"],
    )


def architecture(config: DiT3DConfig | AutoencoderConfig | ClassifierConfig | SegmenterConfig) -> dict[str, Any]:
    """A model's configuration as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _tuples(document: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}
