"""How fast networks run: forward, training step and sampling, as shares of the device's measured matrix rate.

Letters: B batch, C channels, D/H/W latent voxels.
"""

import dataclasses
import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from voxfleet.diffusion.guidance import guided
from voxfleet.diffusion.noise import Draws, sampling_noise
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import SamplerConfig, sample, sampler_table
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.attention import Shape3
from voxfleet.models.execution import MODES, PRECISIONS, autocast, for_inference
from voxfleet.models.summary import summarize
from voxfleet.train.diffusion import DiffusionRecipe
from voxfleet.train.optim import OptimConfig
from voxfleet.train.state import TrainState
from voxfleet.train.step import train_step

Call = Callable[[], Any]
Row = dict[str, Any]

_SHORTEST_S = 0.2  # a timing is of as many calls as take this long
_UNET_MULTIPLE = 4  # edges that MONAI's network, which halves twice, can take


@dataclass(frozen=True, kw_only=True)
class BenchmarkCase:
    """One shape and batch to measure.

    Args:
        input_size: latent voxels along (D, H, W).
        patch_size: voxels of one token along (D, H, W).
        batch_size: samples at once.
        work: what is measured: forward, train (one training step) or sample (a whole trajectory, with guidance).
    """

    input_size: Shape3 = (8, 14, 8)
    patch_size: Shape3 = (4, 4, 4)
    batch_size: int = 8
    work: tuple[str, ...] = ("forward", "train", "sample")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        unknown = [name for name in self.work if name not in WORK]
        if unknown or not self.work:
            raise ValueError(f"work is {self.work}; it must be some of {', '.join(WORK)}")


class UNet(nn.Module):
    """MONAI's DiffusionModelUNet (41 M parameters) behind the interface of a DiT3D."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet

        self.blocks = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=channels,
            out_channels=channels,
            channels=(64, 128, 256),
            attention_levels=(False, False, True),
            num_res_blocks=2,
            num_head_channels=32,
            num_class_embeds=classes + 1,
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Denoise x (B, C, D, H, W) at timesteps t (B,) for labels y (B,)."""
        return self.blocks(x, timesteps=t, class_labels=y)


def _configured(config: DiT3DConfig) -> nn.Module:
    return DiT3D(config)


def _all_global(config: DiT3DConfig) -> nn.Module:
    return DiT3D(dataclasses.replace(config, window_size=None))


def _unet(config: DiT3DConfig) -> nn.Module:
    return UNet(config.in_channels, config.num_classes)


# "configured" is the DiT3D of the configuration, "global" the same with global attention in every block
NETWORKS: dict[str, Callable[[DiT3DConfig], nn.Module]] = {
    "configured": _configured,
    "global": _all_global,
    "unet": _unet,
}


@dataclass(frozen=True)
class Subject:
    """A network on a device, as it is measured."""

    model: nn.Module
    shape: tuple[int, ...]  # of one sample's latents, (C, D, H, W)
    num_classes: int
    batch_size: int
    precision: str
    mode: str
    device: torch.device

    def latents(self) -> Tensor:
        """Noise of the batch's shape, (B, C, D, H, W)."""
        return sampling_noise(self.seeds(), 0, self.shape)

    def seeds(self) -> Tensor:
        """A seed for each sample, (B,)."""
        return torch.arange(self.batch_size, device=self.device)

    def labels(self) -> Tensor:
        """A class for each sample, (B,)."""
        return self.seeds() % self.num_classes


def forward(subject: Subject, _: SamplerConfig) -> Call:
    """One pass of the whole batch."""
    network = MODES[subject.mode](for_inference(subject.model, subject.precision))
    x, t, y = subject.latents(), torch.full((subject.batch_size,), 500.0, device=subject.device), subject.labels()

    @torch.inference_mode()
    def call() -> Tensor:
        with autocast(subject.device, subject.precision):
            return network(x, t, y)

    return call


def training_step(subject: Subject, _: SamplerConfig) -> Call:
    """One optimizer step, with its noise, loss, gradient and average."""
    config = DiT3DConfig(in_channels=subject.shape[0], num_classes=subject.num_classes)
    ones = (1.0,) * subject.shape[0]
    recipe = DiffusionRecipe(config, DiffusionConfig(target="v"), tuple(0.0 for _ in ones), ones)
    network = MODES[subject.mode](subject.model.train())
    state, optim = TrainState.create(subject.model, OptimConfig()), OptimConfig()
    x = subject.latents()
    batch = {"mu": x, "logvar": torch.full_like(x, -4.0), "label": subject.labels()}
    settings: dict[str, Any] = {"scale": 1 / len(x), "total_steps": 1000, "precision": subject.precision}
    return lambda: train_step(state, network, recipe, batch, Draws(0, 0, subject.seeds()), optim=optim, **settings)


def trajectory(subject: Subject, sampler: SamplerConfig) -> Call:
    """A batch of samples from noise."""
    network = MODES[subject.mode](for_inference(subject.model, subject.precision))
    process = Process(DiffusionConfig(target="v"))
    table = sampler_table(sampler, process)
    keys = subject.seeds()

    @torch.inference_mode()
    def call() -> Tensor:
        denoiser = guided(network, subject.labels(), subject.num_classes)
        with autocast(subject.device, subject.precision):
            return sample(denoiser, table, subject.latents(), lambda step: sampling_noise(keys, step, subject.shape))

    return call


WORK: dict[str, Callable[[Subject, SamplerConfig], Call]] = {
    "forward": forward,
    "train": training_step,
    "sample": trajectory,
}


def passes(work: str, sampler: SamplerConfig) -> int:
    """Forward passes that a sample costs in ``work``; a backward pass counts as two."""
    if work != "sample":
        return 3 if work == "train" else 1
    scales = sampler_table(sampler, Process(DiffusionConfig(target="v")))[:, -1]
    return int((1 + (scales != 1).long()).sum())


def measure(
    case: BenchmarkCase,
    work: str,
    config: DiT3DConfig,
    *,
    networks: tuple[str, ...],
    modes: tuple[str, ...],
    sampler: SamplerConfig,
    precision: str,
    repeats: int,
    device: torch.device,
) -> list[Row]:
    """A row for each network and mode at one case.

    All are timed in turn, ``repeats`` times over, and the matrix rate with them, so that what else the machine does
    falls on all alike. Compilation and first calls do not count. A network that is out of memory has no ``seconds``.
    """
    torch._dynamo.reset()  # what earlier cases compiled counts against a limit
    config = dataclasses.replace(config, input_size=case.input_size, patch_size=case.patch_size)
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, dtype=PRECISIONS[precision], device=device) for _ in range(2))
    rows: list[Row] = []
    calls: list[Call] = [lambda: left @ right]
    for name, mode in itertools.product(networks, modes):
        if mode == "graphs" and device.type != "cuda":
            continue
        row, call = _row_and_call(case, work, config, name, mode, sampler, precision, device)
        rows.append(row)
        calls.append(call)
    (matrix, _), *timings = _in_turn(calls, repeats, device)
    matrix_rate = 2 * size**3 / (matrix or math.nan)
    return [row | _rates(row, median, best, matrix_rate) for row, (median, best) in zip(rows, timings, strict=True)]


def _row_and_call(
    case: BenchmarkCase,
    work: str,
    config: DiT3DConfig,
    name: str,
    mode: str,
    sampler: SamplerConfig,
    precision: str,
    device: torch.device,
) -> tuple[Row, Call]:
    is_unet = name == "unet"
    edges = tuple(math.ceil(n / _UNET_MULTIPLE) * _UNET_MULTIPLE for n in case.input_size)
    shape = (config.in_channels, *(edges if is_unet else case.input_size))
    costs = summarize(lambda: NETWORKS[name](config), shape)
    torch.manual_seed(0)
    model = NETWORKS[name](config).to(device)
    call = WORK[work](Subject(model, shape, config.num_classes, case.batch_size, precision, mode, device), sampler)
    row = {
        "work": work,
        "network": name,
        "mode": mode,
        "input_size": list(shape[1:]),
        "patch_size": None if is_unet else list(case.patch_size),
        "tokens": None if is_unet else math.prod(config.grid),
        "batch_size": case.batch_size,
        "parameters": costs.parameters,
        "flops": case.batch_size * costs.flops * passes(work, sampler),
        "precision": precision,
        "device": device_name(device),
        "torch": torch.__version__,
    }
    return row, call


def _rates(row: Row, seconds: float | None, best: float | None, matrix_rate: float) -> Row:
    if seconds is None:
        names = ("seconds", "seconds_best", "samples_per_s", "us_per_token", "tflops", "share")
        return {**dict.fromkeys(names), "matrix_tflops": matrix_rate / 1e12}
    rate = row["flops"] / seconds
    return {
        "seconds": seconds,
        "seconds_best": best,
        "samples_per_s": row["batch_size"] / seconds,
        "us_per_token": 1e6 * seconds / (row["batch_size"] * row["tokens"]) if row["tokens"] else None,
        "tflops": rate / 1e12,
        "matrix_tflops": matrix_rate / 1e12,
        "share": rate / matrix_rate,
    }


def _in_turn(calls: list[Call], repeats: int, device: torch.device) -> list[tuple[float | None, float | None]]:
    """(median, best) seconds of each call, None for one that is out of memory."""
    loops: list[int] = []
    for call in calls:
        try:
            _seconds(call, 1, device)  # compiles
            loops.append(math.ceil(_SHORTEST_S / _seconds(call, 1, device)))
        except torch.OutOfMemoryError:
            loops.append(0)
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, number, found in zip(calls, loops, seconds, strict=True):
            if number:
                found.append(_seconds(call, number, device))
    return [(statistics.median(found), min(found)) if found else (None, None) for found in seconds]


def _seconds(call: Call, number: int, device: torch.device) -> float:
    """Seconds of one of ``number`` calls."""
    began = _now(device)
    for _ in range(number):
        call()
    return (_now(device) - began) / number


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def device_name(device: torch.device) -> str:
    """The device and what drives it, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
