"""What only a GPU can show: CUDA_VISIBLE_DEVICES=0 .venv/bin/pytest tests/gpu. Without one they are skipped."""

import dataclasses

import pytest
import torch

from voxfleet.diffusion.noise import Draws, sampling_noise
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.diffusion.samplers import SamplerConfig
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.execution import MODES, autocast, for_inference
from voxfleet.models.vae import AutoencoderConfig, build_autoencoder
from voxfleet.packages import architecture, load_autoencoder, load_model, write_package
from voxfleet.train.speed import BenchmarkCase, BenchmarkSettings, measure

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
MODEL = DiT3DConfig(hidden_size=96, depth=2, num_heads=4, patch_size=(2, 2, 2), strided_every=2)


def test_noise_is_that_of_the_cpu_to_float_rounding():
    seeds = torch.tensor([0, 5, 2**62 + 3])
    on_cpu, on_gpu = (sampling_noise(seeds.to(device), 3, (4, 8, 14, 8)).cpu() for device in ("cpu", GPU))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-6, atol=1e-6)
    uniform = [Draws(1, 2, torch.arange(9, device=device)).uniform(0).cpu() for device in ("cpu", GPU)]
    assert torch.equal(*uniform)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_answer_of_the_cpu(mode):
    torch.manual_seed(0)
    model = DiT3D(MODEL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, t, y = torch.randn(4, 4, 8, 14, 8), torch.arange(4) * 100.0, torch.arange(4) % 2
    with torch.inference_mode():
        expected = model(x, t, y)
        network = MODES[mode](for_inference(model, "bfloat16").to(GPU))
        with autocast(GPU, "bfloat16"):
            found = [network(x.to(GPU), t.to(GPU), y.to(GPU)).float().cpu() for _ in range(3)][-1]
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["compiled", "graphs"])
def test_sampling_from_a_package_gives_what_eager_does(tmp_path, mode, precision):
    torch.manual_seed(0)
    config = dataclasses.replace(MODEL, learn_sigma=True)
    model = DiT3D(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    document = {
        "architecture": architecture(config),
        "diffusion": dataclasses.asdict(DiffusionConfig(target="v")),
        **{
            "mean": [0.0] * 4,
            "std": [1.0] * 4,
            "geometry": {},
            "classes": ["HC", "TLE"],
            "limits": {},
            "suffix": "T1w",
        },
        "autoencoder": None,
    }
    write_package(str(tmp_path), "model", model.state_dict(), document)
    options = {"sampler": "ddpm", "steps": 6, "guidance_scale": 2.0, "guidance_interval": (0.3, 0.7)}
    eager, other = (
        load_model(str(tmp_path), GPU, precision=precision, mode=name).sample([0, 1, 1], [5, 6, 7], **options)
        for name in ("eager", mode)
    )
    assert (eager - other).abs().mean() < (1e-3 if precision == "float32" else 0.05) * eager.std()


@pytest.mark.parametrize("work", ["forward", "train", "sample"])
def test_every_work_is_measured_in_every_mode(work):
    settings = BenchmarkSettings(
        model=MODEL, networks=("configured", "unet"), modes=tuple(MODES), sampler=SamplerConfig(steps=2), repeats=1
    )
    rows = measure(BenchmarkCase(batch_size=4), work, settings, GPU)
    assert [row["mode"] for row in rows] == [*MODES, *MODES]
    assert all(row["share"] > 0 for row in rows)


def test_decoding_in_half_precision_is_within_50_db_of_float32(tmp_path):
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=(16, 32), num_res_blocks=(1, 1), norm_num_groups=8)
    weights = {name: value.contiguous() for name, value in build_autoencoder(config).state_dict().items()}
    write_package(str(tmp_path), "autoencoder", weights, {"architecture": architecture(config)})
    latents = torch.randn(4, 4, 8, 10, 8)
    exact = load_autoencoder(str(tmp_path)).decode(latents)
    found = load_autoencoder(str(tmp_path), GPU, precision="auto").decode(latents.to(GPU)).float().cpu()
    assert -10 * (found - exact).square().mean().log10() > 50
