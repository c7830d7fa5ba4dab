"""All that training carries from step to step: saved whole, restored whole."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from voxfleet.models.execution import resolve_precision
from voxfleet.train.optim import OptimConfig, ParameterGroups, build_optimizer


@dataclass
class TrainState:
    """A model, its averaged weights, its optimizer and how far they are.

    ``scaler`` keeps small gradients of float16 above zero (Micikevicius et al., "Mixed Precision Training", 2018); with
    other precisions it does nothing. ``step`` counts optimizer steps since the start of the run; ``history`` holds what
    was logged, one entry a point: ``{"step": 10, "loss": ...}``. The order of the data and every random number follow
    from the seed and the step, so no generator state is needed.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor]
    scaler: torch.amp.GradScaler
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def create(
        cls, model: nn.Module, optim: OptimConfig, precision: str = "auto", groups: ParameterGroups | None = None
    ) -> "TrainState":
        """A fresh state around ``model``, which stands on its device; its parameters are one group by default."""
        ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
        device = next(model.parameters()).device
        scaler = torch.amp.GradScaler(device.type, enabled=resolve_precision(precision, device) == "float16")
        return cls(
            model=model,
            optimizer=build_optimizer(optim, groups or [(list(model.parameters()), 1.0)]),
            ema=ema,
            scaler=scaler,
        )

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """ema = decay * ema + (1 - decay) * weights, in float32; the decay warms up as (1 + step) / (10 + step)."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        averaged, current = [], []
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                averaged.append(self.ema[name])
                current.append(value)
            else:
                self.ema[name].copy_(value)
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to continue exactly, copied to the CPU: training may go on while it is written."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "history": self.history,
        }
        return _copied(state)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from a ``snapshot``."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name, value in self.ema.items():
            value.copy_(saved["ema"][name])
        self.scaler.load_state_dict(saved["scaler"])
        self.step, self.history = saved["step"], saved["history"]


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def state_bytes(snapshot: Mapping[str, Any]) -> bytes:
    """A snapshot as a file, readable with ``weights_only``."""
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    return buffer.getvalue()


def read_state(data: bytes) -> Mapping[str, Any]:
    """The content of a checkpoint, on the CPU; nothing is unpickled but tensors and plain containers."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
