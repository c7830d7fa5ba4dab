"""How a network is run: in which precision, and compiled or not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHAPES = 64  # each batch size is compiled for itself; past PyTorch's own limit of 8, fullgraph would fail


def _compiled(network: nn.Module, mode: str | None) -> Any:
    import torch._dynamo  # here, as it takes seconds to import

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    return torch.compile(network, fullgraph=True, dynamic=False, mode=mode)


def reproducible(mode: str) -> None:
    """From now on, this process chooses no kernel by timing it, nor one that may give other bits in each call.

    Args:
        mode: of MODES, in which its network runs.
    """
    torch.backends.cudnn.deterministic = True
    if mode != "eager":
        from torch._inductor import config  # here, as it takes seconds to import

        config.deterministic = True


MODES: dict[str, Callable[[nn.Module], Any]] = {
    "eager": lambda network: network,
    "compiled": lambda network: _compiled(network, None),
    # CUDA graphs: no time lost between kernels, which bounds small batches
    "graphs": lambda network: _compiled(network, "reduce-overhead"),
}


def check_precision(precision: str, *, training: bool = False) -> None:
    """Make sure that there is such a precision; float16, whose loss has to be scaled, is for ``training`` alone.

    Raises:
        ValueError: lists those that there are.
    """
    known = ["auto", *(name for name in PRECISIONS if training or name != "float16")]
    if precision not in known:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(known)}")


def resolve_precision(precision: str, device: torch.device) -> str:
    """``precision``, where "auto" is bfloat16 on a GPU and float32 elsewhere."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of ``precision`` on ``device``."""
    dtype = PRECISIONS[resolve_precision(precision, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def padded(batch: Tensor, size: int) -> Tensor:
    """``batch`` (at most ``size``, ...) filled up with its last element: in one shape, results are the same bits."""
    return torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])


def for_inference(model: nn.Module, precision: str) -> nn.Module:
    """``model`` with the linear weights of its ``blocks`` in ``precision``, once, instead of at each call by autocast.

    The values are those that autocast computes with.
    """
    dtype = PRECISIONS[precision]
    if dtype is not None:
        for layer in model.get_submodule("blocks").modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)
    return model.eval()
