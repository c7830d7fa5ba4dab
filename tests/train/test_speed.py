"""The benchmark's measurements: what is counted, and that what is timed is the work it is named after."""

import dataclasses

import pytest
import torch

from voxfleet.diffusion.samplers import SamplerConfig
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.summary import summarize
from voxfleet.report.benchmark import figure, table
from voxfleet.train import speed
from voxfleet.train.speed import BenchmarkCase, measure, passes

MODEL = DiT3DConfig(hidden_size=24, depth=1, num_heads=2)
CASE = BenchmarkCase(input_size=(4, 6, 4), patch_size=(2, 2, 2), batch_size=3)
SAMPLER = SamplerConfig(steps=3, guidance_scale=2.0, guidance_interval=(0.0, 0.5))


def rows(work, **changes):
    settings = {"networks": ("configured", "global"), "modes": ("eager",), "sampler": SAMPLER, "repeats": 2}
    device = torch.device("cpu")
    return measure(CASE, work, MODEL, **{**settings, **changes}, precision="float32", device=device)


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


def test_a_training_step_changes_the_weights_and_the_others_do_not():
    for work, changes in (("forward", False), ("train", True), ("sample", False)):
        torch.manual_seed(0)
        model = DiT3D(MODEL)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        subject = speed.Subject(model, (4, 8, 14, 8), 2, 3, "float32", "eager", torch.device("cpu"))
        speed.WORK[work](subject, SAMPLER)()
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert same != changes


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
    assert lines[-1].startswith("matrix product, float32: ")
    assert "CPU (" in lines[-1]


@pytest.mark.parametrize(
    ("changes", "word"), [({"batch_size": 0}, "batch_size is 0"), ({"work": ("decode",)}, "forward, train, sample")]
)
def test_bad_cases_name_the_key(changes, word):
    with pytest.raises(ValueError, match=word):
        BenchmarkCase(**changes)
