"""All that training carries from step to step: saved whole, restored whole."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from voxfleet.train.optim import OptimConfig, build_optimizer


@dataclass
class TrainState:
    """A model, its averaged weights, its optimizer and how far they are.

    ``step`` counts optimizer steps since the start of the run; ``history`` holds what was logged, one entry a point:
    ``{"step": 10, "loss": ...}``. The order of the data and every random number follow from the seed and the step, so
    no generator state is needed.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def create(cls, model: nn.Module, optim: OptimConfig) -> "TrainState":
        """A fresh state around ``model``."""
        ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return cls(model=model, optimizer=build_optimizer(optim, model.parameters()), ema=ema)

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

    def to_bytes(self) -> bytes:
        """Everything needed to continue exactly, readable with ``weights_only``."""
        buffer = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "ema": self.ema,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "history": self.history,
            },
            buffer,
        )
        return buffer.getvalue()

    def load_bytes(self, data: bytes) -> None:
        """Continue from ``to_bytes``."""
        saved = read_state(data)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name, value in self.ema.items():
            value.copy_(saved["ema"][name])
        self.step, self.history = saved["step"], saved["history"]


def read_state(data: bytes) -> Mapping[str, Any]:
    """The content of a checkpoint, on the CPU; nothing is unpickled but tensors and plain containers."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
