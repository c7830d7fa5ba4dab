"""Training on Ray Train and Ray Data beside a bare PyTorch loop on tensors in memory: same model, batch and steps.

python docs/benchmarks/training.py FOLDER [CORES [ROUNDS]]   (FOLDER gets made-up latents and the runs)

The bare loop has CORES threads; Ray has one worker with as many, or as many workers with one. All take turns, each in a
process of its own; a ratio is the median over the rounds. Last come 20 epochs on Ray, for the memory of a worker.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from made_up import make_latents
from torch import nn

from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.index import read_index
from voxfleet.data.shards import read_manifest
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.train.diffusion import DiffusionRecipe
from voxfleet.train.optim import OptimConfig
from voxfleet.train.step import TrainerConfig

ROWS, BATCH, SHAPE = 256, 8, (4, 8, 14, 8)
SHORT, LONG = 4, 20  # epochs
MODEL = DiT3DConfig(input_size=SHAPE[1:], patch_size=(2, 2, 2), hidden_size=256, depth=4, num_heads=4)
OPTIM = OptimConfig(lr=1e-4)


def bare(threads: int, epochs: int) -> float:
    """Median seconds of a step of a plain loop: torch's own noise, AdamW, clipping and averaged weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, process = DiT3D(MODEL), Process(DiffusionConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIM.lr, fused=True)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(OPTIM.ema_decay)
    )
    data, labels = torch.randn(ROWS, *SHAPE), torch.arange(ROWS) % 2
    seconds = []
    for _ in range(epochs):
        order = torch.randperm(ROWS)
        for rows in order.split(BATCH):
            began = time.perf_counter()
            x0, y = data[rows] + 0.1 * torch.randn(len(rows), *SHAPE), labels[rows].clone()
            y[torch.rand(len(y)) < MODEL.class_dropout_prob] = MODEL.num_classes
            t, noise = torch.randint(0, 1000, (len(rows),)), torch.randn_like(x0)
            loss = (model(process.q_sample(x0, t, noise), t, y) - noise).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            averaged.update_parameters(model)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[len(seconds) // 4 :])


def on_ray(folder: str, mode: str, workers: int, threads: int, epochs: int) -> list[dict[str, float]]:
    """Every point that a fit logs."""
    from voxfleet.engine.cluster import session
    from voxfleet.engine.ingest import open_splits
    from voxfleet.engine.training import fit
    from voxfleet.models.summary import summarize
    from voxfleet.tracking.base import MemoryTracker

    tracker, resources = MemoryTracker(), ResourcesConfig(workers=workers, cpus_per_worker=threads)
    recipe, columns = DiffusionRecipe(MODEL, DiffusionConfig(), (0.0,) * 4, (1.0,) * 4), ("mu", "logvar")
    with session(resources), tempfile.TemporaryDirectory(dir=folder) as runs:
        fit(
            recipe,
            open_splits(read_index(folder, read_manifest(folder, "latents"), columns), columns, mode),
            folder=runs,
            name=mode,
            trainer=TrainerConfig(
                epochs=epochs, batch_size=BATCH, log_every=8, validate_every=epochs, checkpoint_every=epochs
            ),
            optim=OPTIM,
            resources=resources,
            tracker=tracker,
            flops=3 * summarize(lambda: DiT3D(MODEL), SHAPE).flops,
        )
    return tracker.points


def child(*arguments: object) -> str:
    """What this script prints when it is run with ``arguments``."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def steady(points: list[dict[str, float]], name: str) -> list[float]:
    """The values of ``name`` without those of the first quarter."""
    values = [point[name] for point in points if name in point]
    return values[len(values) // 4 :]


def main(folder: str, cores: int, rounds: int) -> None:
    """Measure both ways of reading, in every layout of the cores, beside the bare loop."""
    make_latents(folder, ["train"] * ROWS + ["val"] * BATCH, SHAPE)
    layouts = [(mode, *layout) for layout in sorted({(1, cores), (cores, 1)}) for mode in ("kept", "streamed")]
    ratios: dict[tuple[str, int, int], list[float]] = {layout: [] for layout in layouts}
    seconds = dict.fromkeys(layouts, 0.0)
    for _ in range(rounds):
        alone = float(child("bare", cores, SHORT))
        for layout in layouts:
            points = json.loads(child("ray", folder, *layout, SHORT))
            seconds[layout] = BATCH / statistics.median(steady(points, "samples_per_s"))
            ratios[layout].append(alone / seconds[layout])
        print(f"bare {1e3 * alone:.0f} ms a step; Ray", {key: round(1e3 * value) for key, value in seconds.items()})
    for layout, found in ratios.items():
        mode, workers, threads = layout
        shown = ", ".join(f"{ratio:.3f}" for ratio in sorted(found))
        print(f"{mode}, {workers} workers of {threads} threads: ratio {statistics.median(found):.3f} ({shown})")
    for layout in layouts[:2]:
        points = json.loads(child("ray", folder, *layout, LONG))
        memory, waits = steady(points, "memory_gb"), steady(points, "data_wait_share")
        first = next(point["first_step_s"] for point in points if "first_step_s" in point)
        print(
            f"{layout[0]}: data wait {100 * statistics.mean(waits):.2f} %, first step after "
            f"{first:.1f} s, memory {memory[0]:.3f} to {memory[-1]:.3f} GB over {LONG} epochs, share of the matrix "
            f"rate {statistics.median(steady(points, 'matrix_share')):.2f}"
        )


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "bare":
        print(bare(*map(int, rest)))
    elif what == "ray":
        print(json.dumps(on_ray(rest[0], rest[1], *map(int, rest[2:]))))
    else:
        main(what, *(map(int, rest) if len(rest) == 2 else [int(rest[0]) if rest else 1, 5]))
