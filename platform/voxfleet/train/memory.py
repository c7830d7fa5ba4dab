"""How much memory a training takes: counted without memory, and measured in a real step."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.execution import resolve_precision
from voxfleet.train.speed import SamplerConfig, Subject, training_step

_COPIES = 6  # of the weights: themselves, gradient, two moments, averages, and those that are validated
_NUMBER = 4  # bytes
_KB = 1024


@dataclass(frozen=True)
class Need:
    """What a worker's training step holds.

    Attributes:
        model: the network.
        part: samples that are computed at once.
        checkpointing: whether blocks are computed again in the backward pass.
    """

    model: DiT3DConfig
    part: int
    checkpointing: bool

    def bytes(self) -> int:
        """Weights, their copies, and what the backward pass needs of the forward pass, in float32."""
        kept, parameters = _counted(self.model, self.checkpointing)
        return self.part * kept + parameters * _NUMBER * _COPIES


@functools.cache
def _counted(config: DiT3DConfig, checkpointing: bool) -> tuple[int, int]:
    """Bytes that autograd keeps of a sample's forward pass, and the number of parameters; no tensor holds data."""
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # as long as they live, no other storage has their number

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        held.append(tensor)
        return tensor

    with FakeTensorMode():
        model = DiT3D(config)
        model.gradient_checkpointing = checkpointing
        own = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
        x = torch.empty(1, config.in_channels, *config.input_size)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(x, torch.zeros(1), torch.zeros(1, dtype=torch.int64)).square().mean()
    activations = sum(size for number, size in kept.items() if number not in own)
    if checkpointing:  # and one block, which is computed again
        activations += _counted(config, False)[0] // config.depth
    return activations, sum(parameter.numel() for parameter in model.parameters())


def measured_bytes(need: Need, precision: str, device: torch.device) -> int:
    """Memory that two training steps take at most, on ``device``, in a process that did nothing else there yet.

    Raises:
        torch.OutOfMemoryError: if a GPU does not hold it.
    """
    config, before = need.model, _used(device)
    model = DiT3D(config).to(device)
    model.gradient_checkpointing = need.checkpointing
    shape = (config.in_channels, *config.input_size)
    subject = Subject(model, config, shape, need.part, resolve_precision(precision, device), "eager", device)
    step = training_step(subject, SamplerConfig())
    for _ in range(2):
        step()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return _used(device) - before + weights  # and those that are validated


def _used(device: torch.device) -> int:
    """The most memory in use so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with open("/proc/self/status") as file:  # getrusage counts what the parent process held when it started this one
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * _KB
