"""Weights of an AutoencoderKlMaisi that was trained elsewhere: out of their wrapping, and held against a configuration.

MONAI's own ``load_old_state_dict`` is not used: of this network it could only rename the weights of attention, and it
drops their output projection, which changes what the network computes. Such a checkpoint is refused.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from voxfleet.models.vae import AutoencoderConfig, build_autoencoder

_FIRST_WEIGHT = "encoder.blocks.0.conv.conv.weight"
# a weight that stands once in each network that is read from checkpoints: what precedes its name is the prefix
_LANDMARKS = (_FIRST_WEIGHT, "layer1.0.conv1.weight")  # of an AutoencoderKlMaisi, and of a ResNet
_HIDDEN = "norm_num_groups and use_convtranspose do not show in the weights"


def unwrap(content: Any) -> dict[str, Tensor]:
    """The float32 weights, by name, in what a checkpoint holds.

    Keys of nested dicts are read as prefixes of the names. The weights are those under the prefix of an autoencoder's
    first weight (else a ResNet's), and all else is left out. Two prefixes are one choice only if their weights are
    equal.

    Raises:
        ValueError: if there are no such weights, or several; if one of them is no dense tensor of real numbers.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"a {type(content).__name__} is no state dict of names and tensors")
    entries = dict(_flatten(content))
    prefixes = next(filter(None, (_prefixes(entries, landmark) for landmark in _LANDMARKS)), None)
    if prefixes is None:
        names = ", ".join(list(entries)[:3]) or "nothing"
        raise ValueError(f"holds {names}, no weights of an AutoencoderKlMaisi or a ResNet; give the checkpoint of one")
    prefix, *others = prefixes
    weights = _convert(entries, prefix)
    for other in others:
        if not _equal(weights, _convert(entries, other)):
            raise ValueError(
                f"has different weights under the prefixes {prefix!r} and {other!r}; put the state dict that you mean "
                "alone into a file"
            )
    return weights


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _prefixes(names: Mapping[str, Any], landmark: str) -> list[str]:
    return [name.removesuffix(landmark) for name in names if f".{name}".endswith(f".{landmark}")]


def _convert(entries: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The weights under ``prefix``, by their names without it."""
    weights = {}
    for name, value in entries.items():
        if name.startswith(prefix):
            try:
                weights[name.removeprefix(prefix)] = to_float32(value)
            except ValueError as error:
                raise ValueError(f"entry {name!r} {error}") from error
    return weights


def _equal(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def to_float32(value: Any) -> Tensor:
    """A contiguous float32 copy of a dense tensor of floating-point numbers, or of a counter (an integer, no axes).

    Raises:
        ValueError: says what ``value`` is instead, and what to save; begins with "is".
    """
    if not isinstance(value, Tensor):
        raise ValueError("is not a tensor; put the state dict alone into the file")
    if value.is_nested or value.layout != torch.strided or type(value) not in (Tensor, nn.Parameter):
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise ValueError(f"is a {kind} {type(value).__name__}; save a dense one (to_dense(), to_padded_tensor())")
    if value.is_meta:
        raise ValueError("is a meta tensor, which has no values; save it from a model that has its weights")
    if value.is_complex() or (value.ndim and not value.is_floating_point()):
        raise ValueError(f"is of {value.dtype}; save real floating-point numbers (float(), dequantize(), real)")
    try:
        return value.detach().resolve_neg().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    except RuntimeError as error:  # a type that PyTorch only stores, or more values than memory holds
        shape = tuple(value.shape)
        raise ValueError(
            f"is of {value.dtype} and shape {shape}, which float32 cannot hold here; save it as float32"
        ) from error


def check_weights(weights: Mapping[str, Tensor], config: AutoencoderConfig) -> None:
    """Make sure that ``weights`` are those of the architecture ``config``.

    Raises:
        ValueError: names the first weight that is missing, unknown, of another shape or not finite, and the key of
            the architecture that is likely to blame.
    """
    expected = {name: tuple(value.shape) for name, value in build_autoencoder(config).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if problem := _first_difference(expected, found):
        raise ValueError(f"{problem}; {_likely_cause(weights, config)}")
    if bad := next((name for name, value in weights.items() if not value.isfinite().all()), None):
        raise ValueError(f"weight {bad} is not finite; use another checkpoint")


def _first_difference(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str | None:
    for name, shape in expected.items():
        if name not in found:
            return f"weight {name} is missing"
        if found[name] != shape:
            return f"weight {name} has shape {found[name]}, the architecture {shape}"
    return next((f"weight {name} is not one of the architecture" for name in found if name not in expected), None)


def _likely_cause(weights: Mapping[str, Tensor], config: AutoencoderConfig) -> str:
    seen = _seen(weights)
    if seen is None:
        return "these are not the weights of an AutoencoderKlMaisi that is built as here"
    if seen.pop("image_channels") != (1, 1):
        return "only autoencoders of one image channel can be used"
    if any(".proj_attn." in name or ".out_proj." in name for name in weights):
        return "its attention has an output projection (include_fc), which cannot be expressed here"
    ours = dataclasses.asdict(config) | {"attention_levels": _levels(config)}
    for key, value in seen.items():
        if ours[key] != value:
            return f"model.{key} is {_shown(ours[key])}, but the weights look like {_shown(value)}: set it to that"
    return f"compare model with the configuration that the checkpoint was trained with ({_HIDDEN})"


def _levels(config: AutoencoderConfig) -> tuple[bool, ...]:
    return config.attention_levels or (False,) * len(config.channels)


def _seen(weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The architecture as the encoder's weights show it; None where it is not built as MAISI's."""
    channels: list[int] = []
    blocks: list[int] = []
    attends: list[bool] = []
    try:
        width, image, *_ = weights[_FIRST_WEIGHT].shape
        restored = len(weights["decoder.blocks.{}.conv.conv.bias".format(_last_block(weights, "decoder"))])
        for index in range(_last_block(weights, "encoder") + 1):
            name = f"encoder.blocks.{index}"
            if index == 0 or f"{name}.conv.conv.conv.weight" in weights:  # the first convolution, or one that halves
                channels, blocks, attends = [*channels, width], [*blocks, 0], [*attends, False]
            elif f"{name}.norm1.weight" in weights:
                width = channels[-1] = len(weights[f"{name}.conv1.conv.conv.weight"])
                blocks[-1] += 1
            elif f"{name}.norm.weight" in weights:
                attends[-1] = True
        latent = len(weights["quant_conv_mu.conv.weight"])
    except (KeyError, ValueError):
        return None
    return {
        "image_channels": (image, restored),
        "channels": tuple(channels),
        "num_res_blocks": tuple(blocks),
        "attention_levels": tuple(attends),
        "latent_channels": latent,
    }


def _last_block(weights: Mapping[str, Tensor], part: str) -> int:
    """Number of the last block of the encoder or decoder; ValueError if there is none."""
    return max(int(found[1]) for name in weights if (found := re.match(rf"{part}\.blocks\.(\d+)\.", name)))


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    shown = str(list(value) if isinstance(value, tuple) else value)
    return shown.replace("True", "true").replace("False", "false")
