"""Tables of the samplers, the loop that applies them, guidance, and what the configuration refuses."""

import re

import pytest
import torch

from voxfleet.diffusion.guidance import guided
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import FLOW_SAMPLERS, SAMPLERS, SamplerConfig, adds_noise, sample, sampler_table

DIFFUSION_SAMPLERS = [name for name in SAMPLERS if name not in FLOW_SAMPLERS]
T, CA, CB, A, B, C, D, R, SCALE = range(9)


def make(name="ddpm", target="v", **changes):
    if name in FLOW_SAMPLERS:
        changes["schedule"] = "flow"
    return Process(DiffusionConfig(target=target, **changes))


def table_of(name="ddpm", steps=10, process=None, **changes):
    return sampler_table(SamplerConfig(name=name, steps=steps, **changes), process or make(name))


def start():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(7))


def noise(step):
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(step))


def answers(fraction):
    """A denoiser that returns 2 C channels, the second half being ``fraction``."""
    return lambda x, t, scale: torch.cat([torch.tanh(x), torch.full_like(x, fraction)], dim=1)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 21])
@pytest.mark.parametrize("target", ["v", "x0"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_tables_are_finite_and_end_at_the_clean_sample(name, target, steps):
    table = table_of(name, steps, make(name, target))
    assert table.shape == (2 * steps - 1 if name == "heun" else steps, 9)
    assert table.dtype == torch.float64
    assert table.isfinite().all()
    assert table[0, T] == (1000 if name in FLOW_SAMPLERS else 999)
    assert (table[1:, T].diff() <= 0).all()
    assert table[-1, T] >= 0
    assert table[-1, A:SCALE].tolist() == [0, 1, 0, 0, 0]  # x becomes x0, without noise
    assert sample(answers(0.0), table, start(), noise).isfinite().all()


@pytest.mark.parametrize("steps", [1, 7, 1000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("target", "first"), [("v", [0, -1]), ("x0", [0, 1])])
@pytest.mark.parametrize("name", DIFFUSION_SAMPLERS)
def test_tables_of_zero_terminal_snr_are_finite_and_start_from_the_answer_alone(name, target, first, schedule, steps):
    process = make(name, target, zero_terminal_snr=True, schedule=schedule)
    table = table_of(name, steps, process)
    assert table.isfinite().all()
    assert table[0, [CA, CB]].tolist() == first
    assert table[0, C] == 0
    known = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    if steps == 1:  # with v = -x0 at pure noise the only step is exact
        assert torch.equal(sample(lambda x, t, scale: known * first[1], table, start(), noise), known)
    assert sample(answers(0.0), table, start(), noise).isfinite().all()


def test_a_denoiser_is_told_the_timestep_of_each_sample_and_the_scale():
    seen = []

    def denoise(x, t, scale):
        seen.append((t.tolist(), scale))
        return torch.zeros_like(x)

    sample(denoise, table_of("ddim", 4, guidance_scale=3.0), start(), noise)
    assert seen == [([t, t], 3.0) for t in (999, 749, 499, 249)]


def test_noise_is_asked_for_by_step_and_not_after_the_last():
    asked = []

    def draw(step):
        asked.append(step)
        return noise(step)

    sample(answers(0.0), table_of("ddpm", 5), start(), draw)
    assert asked == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"name": "ddpm"}, True), ({"eta": 0.1}, True), ({}, False), ({"name": "dpm-solver++"}, False)],
)
def test_which_samplers_add_noise(changes, expected):
    assert adds_noise(sampler_table(SamplerConfig(steps=5, **changes), Process(DiffusionConfig()))) == expected


def test_the_arithmetic_stays_float32_where_the_network_answers_in_bfloat16():
    def rounded(x, t, scale):
        return torch.tanh(x).bfloat16()

    def the_same_in_float32(x, t, scale):
        return rounded(x, t, scale).float()

    table = table_of("dpm-solver++", 5)
    assert torch.equal(sample(rounded, table, start(), noise), sample(the_same_in_float32, table, start(), noise))


def test_learned_variance_lies_between_small_and_large_by_its_logarithm():
    small, large = (table_of("ddpm", 6, variance=variance)[:, D] for variance in ("small", "large"))
    row = table_of("ddpm", 6)[2:3]
    still = sample(answers(0.0), row, start(), lambda step: 0.0)
    for fraction in (-1.0, -0.4, 0.5, 1.0, 1.3):
        moved = sample(answers(fraction), row, start(), lambda step: torch.ones(2, 3, 4))
        deviation = small[2] ** ((1 - fraction) / 2) * large[2] ** ((1 + fraction) / 2)
        torch.testing.assert_close(moved - still, torch.full((2, 3, 4), deviation.item()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("fraction", "variance"), [(-1.0, "small"), (1.0, "large")])
def test_learned_variance_at_its_limits_is_small_or_large(fraction, variance):
    learned = sample(answers(fraction), table_of("ddpm", 8), start(), noise)
    fixed = sample(lambda x, t, scale: torch.tanh(x), table_of("ddpm", 8, variance=variance), start(), noise)
    torch.testing.assert_close(learned, fixed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [(n, {}) for n in SAMPLERS if n != "ddpm"] + [("ddim", {"eta": 0.7}), ("ddpm", {"variance": "large"})],
)
def test_other_samplers_ignore_a_learned_variance(name, changes):
    table = table_of(name, 8, **changes)
    plain = sample(lambda x, t, scale: torch.tanh(x), table, start(), noise)
    assert torch.equal(sample(answers(0.6), table, start(), noise), plain)


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_is_within_its_interval_and_one_outside(name):
    table = table_of(name, 20, guidance_scale=4.0, guidance_interval=(0.2, 0.8))
    inside = (table[:, T] >= 200) & (table[:, T] <= 800)
    assert 0 < inside.sum() < len(table)
    assert (table[inside, SCALE] == 4).all()
    assert (table[~inside, SCALE] == 1).all()
    assert (table_of(name, 20, guidance_scale=4.0)[:, SCALE] == 4).all()
    assert torch.equal(table[:, :SCALE], table_of(name, 20)[:, :SCALE])


def model(x, t, labels):
    """Answers the label, and in as many further channels the label plus 10: a learned variance."""
    answer = labels.float().reshape(-1, 1, 1).expand(x.shape)
    return torch.cat([answer, answer + 10], dim=1)


def test_guidance_extrapolates_from_the_null_label_on_every_channel():
    x, t, labels = torch.zeros(2, 4, 3), torch.zeros(2), torch.tensor([0, 1])
    found = guided(lambda *inputs: model(*inputs)[:, :4], labels, null=2)(x, t, 3.0)
    assert torch.equal(found, torch.tensor([-4.0, -1.0]).reshape(2, 1, 1).expand(2, 4, 3))  # u + 3 (c - u)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_leaves_the_variance_to_the_label(scale):
    found = guided(model, torch.tensor([0, 1]), null=2)(torch.zeros(2, 4, 3), torch.zeros(2), scale)
    assert found.shape == (2, 8, 3)
    assert found[:, :4].amax(dim=(1, 2)).tolist() == [2 - 2 * scale, 2 - scale]
    assert torch.equal(found[:, 4:], torch.tensor([10.0, 11.0]).reshape(2, 1, 1).expand(2, 4, 3))


def test_a_scale_of_one_asks_the_model_once_for_the_labels_alone():
    asked = []

    def spy(x, t, labels):
        asked.append((len(x), len(t), labels.tolist()))
        return x

    denoise = guided(spy, torch.tensor([0, 1]), null=2)
    denoise(torch.zeros(2, 4), torch.zeros(2), 1.0)
    denoise(torch.zeros(2, 4), torch.zeros(2), 1.5)
    assert asked == [(2, 2, [0, 1]), (4, 4, [0, 1, 2, 2])]


@pytest.mark.parametrize(
    ("name", "schedule", "allowed"),
    [(name, "flow", "euler, heun") for name in DIFFUSION_SAMPLERS]
    + [(name, schedule, "ddpm, ddim, dpm-solver++") for name in FLOW_SAMPLERS for schedule in ("linear", "cosine")],
)
def test_a_sampler_of_another_process_is_refused_with_those_of_this_one(name, schedule, allowed):
    message = f"name is '{name}'; a model trained with schedule {schedule} takes one of {allowed}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        table_of(name, 2, make(schedule=schedule))


def test_more_steps_than_timesteps_are_refused_but_by_flow():
    with pytest.raises(ValueError, match=r"steps is 31; the model was trained with 30 timesteps"):
        table_of("ddim", 31, make(timesteps=30))
    assert len(table_of("ddim", 30, make(timesteps=30))) == 30
    assert table_of("heun", 31, make("heun", timesteps=30)).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "plms"}, r"name is 'plms'; it must be one of ddpm, ddim, dpm-solver\+\+, euler, heun"),
        ({"steps": 0}, r"steps is 0; it must be at least 1"),
        ({"guidance_scale": -0.5}, r"guidance_scale is -0.5; it must be 0 or more"),
        ({"guidance_interval": (0.8, 0.2)}, r"guidance_interval is \(0.8, 0.2\); it must be \[low, high\]"),
        ({"guidance_interval": (0.2, 1.2)}, r"guidance_interval is \(0.2, 1.2\)"),
        ({"guidance_interval": (-0.1, 0.5)}, r"guidance_interval is \(-0.1, 0.5\)"),
        ({"eta": 1.5}, r"eta is 1.5; it must be in \[0, 1\]"),
        ({"eta": 0.5, "name": "ddpm"}, r"eta is 0.5, which only ddim has"),
        ({"variance": "medium"}, r"variance is 'medium'; it must be small or large"),
        ({"variance": "large"}, r"variance is 'large', which only ddpm has"),
    ],
)
def test_bad_values_list_what_is_allowed(changes, words):
    with pytest.raises(ValueError, match=words):
        SamplerConfig(**changes)
