"""What a network is made of and what it costs, found without its weights."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from voxfleet.models.attention import plan_windows
from voxfleet.models.dit3d import DiT3D, DiT3DConfig


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Costs of a network; FLOPs are those of one sample's forward pass, a multiplication and an addition being two."""

    parameters: int
    flops: int
    attention_flops: int


def summarize(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Summary:
    """The costs of the denoiser that ``build`` makes, for one sample of latents (C, D, H, W), counted by PyTorch.

    Everything happens on the "meta" device: neither memory nor time is spent on the weights.
    """
    with torch.device("meta"):
        model = build()
        x, t, y = torch.empty(1, *shape), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, t, y)
    counts = counter.get_flop_counts()["Global"]
    return Summary(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=counter.get_total_flops(),
        # linear layers are addmm; on this device attention is two products of batches of matrices
        attention_flops=counts.get(torch.ops.aten.bmm, 0),
    )


def summary_lines(config: DiT3DConfig) -> list[str]:
    """A DiT3D for people to read: a line each of a name and what there is to say."""
    costs = summarize(lambda: DiT3D(config), (config.in_channels, *config.input_size))
    windows = plan_windows(config.grid, config.window_size).groups
    numbers = config.patch_numbers
    fits = "" if numbers <= config.hidden_size else ", fewer: its noise cannot be predicted, train with target x0"
    kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(config.attention).items())
    sizes = ", ".join(f"{count} of {size} token{'s' * (size > 1)}" for count, size in windows)
    cut = ", and no block reaches beyond its own: see strided_every, global_every" if config.is_cut else ""
    lines = {
        "latents": f"{config.in_channels} channels of {_times(config.input_size)} voxels",
        "tokens": f"{math.prod(config.grid)}, a grid of {_times(config.grid)}",
        "patch": f"{_times(config.patch_size)} voxels, {numbers} numbers (hidden size {config.hidden_size}{fits})",
        "blocks": f"{config.depth}: {kinds}; {config.num_heads} heads of {config.hidden_size // config.num_heads}",
        "windows": sizes + cut if config.window_size else "none: every block attends globally",
        "parameters": f"{costs.parameters:,} ({costs.parameters / 1e6:.1f} M)",
        "FLOPs": f"{costs.flops / 1e9:,.3f} G a sample in a forward pass ({costs.attention_flops / costs.flops:.1%} "
        f"attention), {3 * costs.flops / 1e9:,.3f} G in a training step",
    }
    return [f"{name:<11}{text}" for name, text in lines.items()]


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
