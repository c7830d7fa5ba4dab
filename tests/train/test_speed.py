"""The benchmark's measurements: what is counted, and that what is timed is the work it is named after."""

import dataclasses

import pytest
import torch

from voxfleet.diffusion.samplers import SAMPLERS, SamplerConfig
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.summary import summarize
from voxfleet.report.benchmark import figure, table
from voxfleet.train import speed
from voxfleet.train.speed import BenchmarkCase, BenchmarkSettings, measure, passes

MODEL = DiT3DConfig(hidden_size=24, depth=1, num_heads=2)
CASE = BenchmarkCase(input_size=(4, 6, 4), patch_size=(2, 2, 2), batch_size=3)
SAMPLER = SamplerConfig(steps=3, guidance_scale=2.0, guidance_interval=(0.0, 0.5))


def rows(work, **changes):
    settings = {"networks": ("configured", "global"), "modes": ("eager",), "sampler": SAMPLER, "repeats": 2}
    return measure(CASE, work, BenchmarkSettings(model=MODEL, **{**settings, **changes}), torch.device("cpu"))


def subject(precision="float32"):
    torch.manual_seed(0)
    return speed.Subject(DiT3D(MODEL), MODEL, (4, 8, 14, 8), 3, precision, "eager", torch.device("cpu"))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(speed, "_SHORTEST_S", 1e-3)


@pytest.mark.parametrize("work", ["forward", "train", "sample"])
def test_rates_follow_from_the_seconds(work):
    found = rows(work)
    assert [row["network"] for row in found] == ["configured", "global"]
    config = dataclasses.replace(MODEL, input_size=CASE.input_size, patch_size=CASE.patch_size)
    one = summarize(lambda: DiT3D(config), (4, *CASE.input_size))
    for row in found:
        assert row["tokens"] == 12
        assert row["flops"] == 3 * passes(work, SAMPLER) * one.flops
        assert row["samples_per_s"] == pytest.approx(3 / row["seconds"])
        assert row["us_per_token"] == pytest.approx(1e6 * row["seconds"] / 36)
        assert row["share"] == pytest.approx(row["flops"] / row["seconds"] / 1e12 / row["matrix_tflops"])
        assert 0 < row["seconds_best"] <= row["seconds"]


def test_guided_steps_cost_two_passes_and_others_one():
    assert passes("sample", SAMPLER) == 1 + 1 + 2  # timesteps 999, 666 and 332 of 1000; guided up to 500
    assert passes("sample", SamplerConfig(steps=3, guidance_scale=1.0)) == 3
    assert (passes("forward", SAMPLER), passes("train", SAMPLER)) == (1, 3)


@pytest.mark.parametrize(("work", "trains"), [("forward", False), ("train", True), ("sample", False)])
def test_a_training_step_changes_the_weights_and_the_others_do_not(work, trains):
    measured = subject()
    before = {name: value.clone() for name, value in measured.model.state_dict().items()}
    speed.WORK[work](measured, SAMPLER)()
    same = all(torch.equal(value, before[name]) for name, value in measured.model.state_dict().items())
    assert same != trains


@pytest.mark.parametrize("work", ["forward", "sample"])
def test_inference_in_bfloat16_runs_on_weights_and_products_in_bfloat16(work):
    measured, seen = subject("bfloat16"), []
    layer = measured.model.blocks[0].mlp[0]
    layer.register_forward_hook(lambda module, arguments, out: seen.append(out.dtype))
    speed.WORK[work](measured, SAMPLER)()
    assert layer.weight.dtype == torch.bfloat16
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_measured(name):
    sampler = SamplerConfig(name=name, steps=2)
    assert speed.trajectory(subject(), sampler)().shape == (3, 4, 8, 14, 8)
    assert passes("sample", sampler) == (6 if name == "heun" else 4)


def test_monais_network_is_measured_on_the_next_shape_that_it_takes():
    (row,) = rows("forward", networks=("unet",))
    assert row["input_size"] == [4, 8, 4]
    assert row["tokens"] is None
    assert row["parameters"] == pytest.approx(41e6, rel=0.02)


def test_graphs_are_left_out_without_a_gpu():
    assert rows("forward", modes=("graphs",)) == []


def test_a_network_that_does_not_fit_is_a_row_that_says_so(monkeypatch):
    def full(config):
        model = DiT3D(config)
        model.register_forward_pre_hook(fail)
        return model

    def fail(module, arguments):
        if not arguments[0].is_meta:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(speed.NETWORKS, "global", full)
    fits, does_not = rows("forward")
    assert fits["seconds"] > 0
    assert does_not["seconds"] is None
    assert "out of memory" in table([fits, does_not])[2]
    assert figure([fits, does_not]).startswith(b"\x89PNG")


def test_the_table_is_aligned_and_names_the_limit():
    lines = table(rows("forward"))
    assert lines[0].split()[:3] == ["work", "network", "mode"]
    assert lines[1].index("eager") == lines[2].index("eager") == lines[0].index("mode")
    assert lines[-1].startswith("matrix product in float32 on CPU (")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"cases": (CASE, BenchmarkCase(batch_size=0))}, r"cases\[1\].batch_size is 0"),
        ({"cases": (BenchmarkCase(work=("decode",)),)}, r"cases\[0\].work is \['decode'\].* forward, train, sample"),
        ({"cases": (BenchmarkCase(input_size=(0, 6, 4)),)}, r"cases\[0\].input_size is \(0, 6, 4\)"),
        ({"cases": ()}, r"cases is empty"),
        ({"sampler": SamplerConfig(steps=2000)}, r"sampler.steps is 2000"),
    ],
)
def test_bad_settings_name_the_key(changes, word):
    with pytest.raises(ValueError, match=word):
        BenchmarkSettings(**changes)
