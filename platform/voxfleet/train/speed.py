"""How fast networks run: forward, training step and sampling, as shares of the device's measured matrix rate.

Letters: B batch, C channels, D/H/W latent voxels.
"""

import dataclasses
import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from voxfleet.diffusion.guidance import guided
from voxfleet.diffusion.noise import Draws, sampling_noise
from voxfleet.diffusion.process import FLOW, DiffusionConfig, Process
from voxfleet.diffusion.samplers import FLOW_SAMPLERS, SamplerConfig, sample, sampler_table
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.attention import Shape3
from voxfleet.models.execution import MODES, PRECISIONS, autocast, check_precision, for_inference, resolve_precision
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


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What is measured, and how.

    Args:
        model: the DiT3D; the cases say its input and patch size.
        cases: shapes and batches to measure.
        networks: what is compared: configured (the DiT3D of model), mixed (the same with one global block in four),
            global (with global attention in every block), unet (MONAI's DiffusionModelUNet).
        modes: eager, compiled, or graphs (compiled, with CUDA graphs; left out where there is no GPU).
        sampler: the trajectory that sample measures.
        precision: float32, bfloat16, or auto: bfloat16 on a GPU, float32 elsewhere.
        repeats: timings of each; the median is shown.
    """

    model: DiT3DConfig = field(default_factory=DiT3DConfig)
    cases: tuple[BenchmarkCase, ...] = (BenchmarkCase(),)
    networks: tuple[str, ...] = ("configured", "global", "unet")
    modes: tuple[str, ...] = ("eager", "compiled")
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    precision: str = "auto"
    repeats: int = 5

    def __post_init__(self) -> None:
        check_precision(self.precision)
        _check_names("networks", self.networks, NETWORKS)
        _check_names("modes", self.modes, MODES)
        if not self.cases:
            raise ValueError("cases is empty; give at least one, such as [{input_size: [8,14,8], batch_size: 8}]")
        for number, case in enumerate(self.cases):
            _check_names(f"cases[{number}].work", case.work, WORK)
            if case.batch_size < 1:
                raise ValueError(f"cases[{number}].batch_size is {case.batch_size}; it must be at least 1")
            try:
                model_of(case, self.model)
            except ValueError as error:
                raise ValueError(f"cases[{number}].{error}") from error
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; it must be at least 1")
        try:
            sampler_table(self.sampler, process_of(self.sampler))
        except ValueError as error:
            raise ValueError(f"sampler.{error}") from error


def _check_names(key: str, chosen: tuple[str, ...], known: Iterable[str]) -> None:
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"{key} is {list(chosen)}; it must be some of {', '.join(known)}")


def model_of(case: BenchmarkCase, model: DiT3DConfig) -> DiT3DConfig:
    """``model`` at the shapes of ``case``.

    Raises:
        ValueError: if they are impossible.
    """
    return dataclasses.replace(model, input_size=case.input_size, patch_size=case.patch_size)


def process_of(sampler: SamplerConfig) -> Process:
    """A process that ``sampler`` can draw from."""
    return Process(DiffusionConfig(schedule=FLOW if sampler.name in FLOW_SAMPLERS else "linear", target="v"))


class UNet(nn.Module):
    """MONAI's DiffusionModelUNet (41 M parameters) behind the interface of a DiT3D."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet

        self.blocks = DiffusionModelUNet(  # the name that ``for_inference`` looks for
            spatial_dims=3,
            in_channels=channels,
            out_channels=channels,
            channels=(64, 128, 256),
            attention_levels=(False, False, True),
            num_res_blocks=2,
            num_head_channels=32,
            num_class_embeds=classes + 1,
            use_flash_attention=True,
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Denoise x (B, C, D, H, W) at timesteps t (B,) for labels y (B,)."""
        return self.blocks(x, timesteps=t, class_labels=y)


def _dit(**changes: Any) -> Callable[[DiT3DConfig], nn.Module]:
    return lambda config: DiT3D(dataclasses.replace(config, **changes))


NETWORKS: dict[str, Callable[[DiT3DConfig], nn.Module]] = {
    "configured": _dit(),
    "mixed": _dit(global_every=4),
    "global": _dit(window_size=None),
    "unet": lambda config: UNet(config.in_channels, config.num_classes),
}


@dataclass(frozen=True)
class Subject:
    """A network on a device, as it is measured."""

    model: nn.Module
    config: DiT3DConfig
    shape: tuple[int, ...]  # of one sample's latents, (C, D, H, W)
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
        return self.seeds() % self.config.num_classes

    def for_inference(self) -> nn.Module:
        """The network as sampling runs it."""
        return MODES[self.mode](for_inference(self.model, self.precision))


def forward(subject: Subject, _: SamplerConfig) -> Call:
    """One pass of the whole batch."""
    network = subject.for_inference()
    x, t, y = subject.latents(), torch.full((subject.batch_size,), 500.0, device=subject.device), subject.labels()

    @torch.inference_mode()
    def call() -> Tensor:
        with autocast(subject.device, subject.precision):
            return network(x, t, y)

    return call


def training_step(subject: Subject, _: SamplerConfig) -> Call:
    """One optimizer step, with its noise, loss, gradient and average."""
    channels = subject.shape[0]
    recipe = DiffusionRecipe(subject.config, DiffusionConfig(target="v"), (0.0,) * channels, (1.0,) * channels)
    network, optim = MODES[subject.mode](subject.model.train()), OptimConfig()
    state = TrainState.create(subject.model, optim)
    x = subject.latents()
    batch = {"mu": x, "logvar": torch.full_like(x, -4.0), "label": subject.labels()}
    settings: dict[str, Any] = {"scale": 1 / len(x), "total_steps": 1000, "precision": subject.precision}
    return lambda: train_step(state, network, recipe, batch, Draws(0, 0, subject.seeds()), optim=optim, **settings)


def trajectory(subject: Subject, sampler: SamplerConfig) -> Call:
    """A batch of samples from noise."""
    network, table, keys = subject.for_inference(), sampler_table(sampler, process_of(sampler)), subject.seeds()

    @torch.inference_mode()
    def call() -> Tensor:
        denoiser = guided(network, subject.labels(), subject.config.num_classes)
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
    scales = sampler_table(sampler, process_of(sampler))[:, -1]
    return int((1 + (scales != 1).long()).sum())


def measure(case: BenchmarkCase, work: str, settings: BenchmarkSettings, device: torch.device) -> list[Row]:
    """A row for each network and mode at one case.

    Each is timed in turn with the product of two matrices, so that what else the machine does falls on both alike.
    Compilation and first calls do not count. A network that is out of memory has no ``seconds``.
    """
    precision = resolve_precision(settings.precision, device)
    reference, reference_flops = matrix_product(precision, device)
    config = model_of(case, settings.model)
    rows = []
    for name, mode in itertools.product(settings.networks, settings.modes):
        if mode == "graphs" and device.type != "cuda":
            continue
        edges: tuple[int, ...] = case.input_size
        if name == "unet":
            edges = tuple(math.ceil(n / _UNET_MULTIPLE) * _UNET_MULTIPLE for n in edges)
        shape = (config.in_channels, *edges)

        def build(name: str = name, mode: str = mode, shape: tuple[int, ...] = shape) -> Call:
            torch.manual_seed(0)
            model = NETWORKS[name](config).to(device)
            subject = Subject(model, config, shape, case.batch_size, precision, mode, device)
            return WORK[work](subject, settings.sampler)

        costs = summarize(lambda name=name: NETWORKS[name](config), shape)  # type: ignore[misc]
        row = {
            "work": work,
            "network": name,
            "mode": mode,
            "input_size": list(edges),
            "patch_size": None if name == "unet" else list(case.patch_size),
            "tokens": None if name == "unet" else math.prod(config.grid),
            "batch_size": case.batch_size,
            "parameters": costs.parameters,
            "flops": case.batch_size * costs.flops * passes(work, settings.sampler),
            "precision": precision,
            "device": device_name(device),
            "torch": torch.__version__,
        }
        timings = _in_turn(build, reference, settings.repeats, device)
        rows.append(row | _rates(row, *timings, matrix_flops=reference_flops))
        torch.compiler.reset()  # what is compiled counts against a limit, and CUDA graphs keep memory
    return rows


def matrix_product(precision: str, device: torch.device) -> tuple[Call, int]:
    """The product of two large matrices in ``precision``, and its FLOPs: what the device can do at best."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, dtype=PRECISIONS[precision], device=device) for _ in range(2))
    return lambda: left @ right, 2 * size**3


def matrix_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of ``matrix_product``, measured now."""
    call, flops = matrix_product(precision, device)
    call()
    return flops / _seconds(call, 1, device)


def passes_per_s(config: DiT3DConfig, batch_size: int, precision: str, device: torch.device) -> float | None:
    """Forward passes a second, of one sample each, in batches of ``batch_size``; None where memory is short."""
    shape = (config.in_channels, *config.input_size)
    try:
        model = DiT3D(config).to(device)
        subject = Subject(model, config, shape, batch_size, resolve_precision(precision, device), "eager", device)
        call = forward(subject, SamplerConfig())
        call()
        return batch_size / _seconds(call, max(1, math.ceil(_SHORTEST_S / _seconds(call, 1, device))), device)
    except torch.OutOfMemoryError:
        return None


def _in_turn(
    build: Callable[[], Call], reference: Call, repeats: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Seconds of the call that is built, and of the reference; none where memory is short."""
    try:
        call = build()
        for _ in range(3 if device.type == "cuda" else 1):  # CUDA graphs warm up, record, and replay
            call()
        reference()
        numbers = [math.ceil(_SHORTEST_S / _seconds(each, 1, device)) for each in (call, reference)]
        pairs = [(_seconds(call, numbers[0], device), _seconds(reference, numbers[1], device)) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        return [], []
    return [first for first, _ in pairs], [second for _, second in pairs]


def _rates(row: Row, seconds: list[float], reference: list[float], *, matrix_flops: int) -> Row:
    if not seconds:
        names = ("seconds", "seconds_best", "samples_per_s", "us_per_token", "tflops", "matrix_tflops", "share")
        return dict.fromkeys(names)
    median = statistics.median(seconds)
    rate, limit = row["flops"] / median, matrix_flops / statistics.median(reference)
    return {
        "seconds": median,
        "seconds_best": min(seconds),
        "samples_per_s": row["batch_size"] / median,
        "us_per_token": 1e6 * median / (row["batch_size"] * row["tokens"]) if row["tokens"] else None,
        "tflops": rate / 1e12,
        "matrix_tflops": limit / 1e12,
        "share": rate / limit,
    }


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
