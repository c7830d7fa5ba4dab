"""A DiT3D trained for a minute on two classes of blobs: guidance tells them apart."""

import numpy as np
import pytest
import torch

from voxfleet.diffusion.guidance import guided
from voxfleet.diffusion.noise import Draws, sampling_noise
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import SamplerConfig, sample, sampler_table
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.train.diffusion import DiffusionRecipe
from voxfleet.train.optim import OptimConfig
from voxfleet.train.state import TrainState
from voxfleet.train.step import train_step

EDGE, STEPS, BATCH = 8, 500, 32
MODEL = DiT3DConfig(
    in_channels=1,
    input_size=(EDGE,) * 3,
    patch_size=(2, 2, 2),
    hidden_size=64,
    depth=2,
    num_heads=4,
    window_size=(2, 2, 2),
    strided_every=2,
    class_dropout_prob=0.15,
)
OPTIM = OptimConfig(lr=2e-3, warmup_steps=20, final_lr_ratio=0.05, ema_decay=0.98)


def blobs(labels, generator):
    """Blobs (B, 1, D, H, W) of both classes, centred around voxels 3 and 4 of the first axis, so that they overlap."""
    centres = 3.5 + generator.normal(0, 0.7, (len(labels), 3))
    centres[:, 0] += labels - 0.5
    axes = np.stack(np.meshgrid(*[np.arange(EDGE)] * 3, indexing="ij"))
    distance = ((axes[None] - centres[:, :, None, None, None]) ** 2).sum(axis=1)
    return torch.tensor(np.exp(-distance / 4)[:, None], dtype=torch.float32)


def places(volumes):
    """Where along the first axis the centre of each blob is, (B,)."""
    mass = volumes.clamp(min=0).sum(dim=(1, 3, 4))
    return ((mass * torch.arange(EDGE)).sum(1) / mass.sum(1)).numpy()


def separation(volumes, labels):
    """Distance of the two classes' means in standard deviations (d')."""
    first, second = (places(volumes)[labels == label] for label in (0, 1))
    return (second.mean() - first.mean()) / np.sqrt((first.var() + second.var()) / 2)


PROCESSES = {"x0": DiffusionConfig(target="x0"), "flow": DiffusionConfig(schedule="flow", target="x0")}


def train(diffusion):
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    labels = np.arange(512) % 2
    data = blobs(labels, generator)
    recipe = DiffusionRecipe(MODEL, diffusion, (data.mean().item(),), (data.std().item(),))
    state = TrainState.create(recipe.build(), OPTIM)
    for step in range(STEPS):
        rows = torch.from_numpy(generator.integers(0, len(data), BATCH))
        x = data[rows]
        batch = {"mu": x, "logvar": torch.full_like(x, -30.0), "label": torch.from_numpy(labels)[rows]}
        train_step(
            state,
            state.model,
            recipe,
            batch,
            Draws(0, step, torch.arange(BATCH)),
            scale=1 / BATCH,
            total_steps=STEPS,
            optim=OPTIM,
            precision="float32",
        )
    model = DiT3D(MODEL)
    model.load_state_dict(state.ema)
    return model.eval(), recipe, separation(data, labels)


@pytest.mark.matrix
@pytest.mark.parametrize("name", PROCESSES)
def test_guidance_separates_the_classes(name):
    model, recipe, real = train(PROCESSES[name])
    labels = torch.arange(256) % 2
    process = Process(recipe.diffusion)
    sampler = "heun" if process.is_flow else "dpm-solver++"
    found = {}
    for scale in (0.0, 1.0, 3.0):
        table = sampler_table(SamplerConfig(name=sampler, steps=12, guidance_scale=scale), process)
        with torch.inference_mode():
            start = sampling_noise(torch.arange(256), 0, (1, EDGE, EDGE, EDGE))
            x = sample(guided(model, labels, MODEL.num_classes), table, start, lambda step: torch.zeros(1))
        found[scale] = separation(x * recipe.std[0] + recipe.mean[0], labels.numpy())
    assert abs(found[0.0]) < 0.4  # a scale of 0 is the model without labels
    assert found[1.0] == pytest.approx(real, rel=0.5)
    assert found[3.0] > 2.5 * found[1.0]
