"""Weights of an AutoencoderKlMaisi that was trained elsewhere: out of their wrapping, and held against a configuration.

MONAI's own ``load_old_state_dict`` is not used: of this network it could only rename the weights of attention, and it
drops their output projection, which changes what the network computes. Such a checkpoint is refused.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from voxfleet.models.vae import AutoencoderConfig, build_autoencoder

_WRAPPINGS = ("unet_state_dict", "autoencoder_state_dict", "state_dict", "autoencoder", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
_HIDDEN = "norm_num_groups and use_convtranspose do not show in the weights"


def unwrap(content: Any) -> dict[str, Tensor]:
    """The float32 weights, by name, in what a checkpoint holds.

    Raises:
        ValueError: if no state dict is found; says what is there.
    """
    while isinstance(content, Mapping) and (key := next((k for k in _WRAPPINGS if k in content), None)):
        content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"a {type(content).__name__} is no state dict of names and tensors")
    if others := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        keys = ", ".join(_WRAPPINGS)
        raise ValueError(
            f"entry {others[0]!r} is not a tensor; put the state dict alone into the file, or under {keys}"
        )
    weights = {str(name): value.float() for name, value in content.items()}
    while weights and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), None)):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


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
        width, image, *_ = weights["encoder.blocks.0.conv.conv.weight"].shape
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
