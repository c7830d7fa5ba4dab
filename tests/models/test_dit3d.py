"""DiT3D: windows against a masked oracle, shapes, independence, gradients, initial zeros."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.attention import Attention, plan_windows, split_axis

edge = st.integers(1, 9)
shape3 = st.tuples(edge, edge, edge)


def tiny(**changes):
    settings_ = {"in_channels": 2, "input_size": (5, 7, 3), "patch_size": (2, 2, 2), "hidden_size": 24, "depth": 2}
    torch.manual_seed(0)
    model = DiT3D(DiT3DConfig(**{**settings_, "num_heads": 2, "window_size": (2, 2, 2), **changes}))
    for parameter in model.parameters():  # the zero-initialised layers would hide everything
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(model, batch=3):
    config = model.config
    x = torch.randn(batch, config.in_channels, *config.input_size)
    return x, torch.arange(batch) * 100, torch.arange(batch) % (config.num_classes + 1)


@given(length=st.integers(1, 60), window=st.integers(1, 70))
def test_split_axis_is_balanced_and_complete(length, window):
    parts = split_axis(length, window)
    assert sum(parts) == length
    assert max(parts) - min(parts) <= 1
    assert max(parts) <= window
    assert len(parts) == math.ceil(length / min(window, length))


@settings(deadline=None, max_examples=40)
@given(grid=shape3, window=shape3)
def test_window_attention_equals_masked_global_attention(grid, window):
    plan = plan_windows(grid, window)
    assert sorted(plan.order) == list(range(math.prod(grid)))
    torch.manual_seed(0)
    attention = Attention(8, 2, plan.groups).double()
    x = torch.randn(2, math.prod(grid), 8, dtype=torch.float64)
    window_of = torch.cat([torch.arange(c).repeat_interleave(n) + 1000 * g for g, (c, n) in enumerate(plan.groups)])
    q, k, v = attention.qkv(x).reshape(2, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=window_of[:, None] == window_of[None])
    expected = attention.proj(masked.transpose(1, 2).reshape(2, -1, 8))
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(grid=shape3, window=shape3)
def test_windows_are_boxes_of_the_grid(grid, window):
    plan = plan_windows(grid, window)
    order, start = torch.tensor(plan.order), 0
    for count, size in plan.groups:
        for tokens in order[start : start + count * size].reshape(count, size):
            axes = torch.stack(torch.unravel_index(tokens, grid))
            edges = axes.amax(1) - axes.amin(1) + 1
            assert edges.prod() == size  # a full box
            assert all(edge <= limit for edge, limit in zip(edges.tolist(), window, strict=True))
        start += count * size


@pytest.mark.parametrize("size", [(8, 14, 8), (7, 11, 5), (3, 4, 5)])
@pytest.mark.parametrize("patch", [(1, 2, 4), (2, 2, 2), (4, 4, 4)])
@pytest.mark.parametrize("window", [None, (2, 2, 2), (9, 9, 9)])
def test_output_has_the_shape_of_the_input_and_every_parameter_a_gradient(size, patch, window):
    model = tiny(input_size=size, patch_size=patch, window_size=window, global_every=2)
    x, t, y = inputs(model)
    out = model(x, t, y)
    assert out.shape == x.shape
    out.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_sample_does_not_depend_on_its_batch():
    model = tiny()
    x, t, y = inputs(model, 4)
    before = model(x, t, y)
    x[0] += 1.0
    after = model(x, t, y)
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])


def test_without_global_blocks_a_voxel_changes_its_own_window_only():
    model = tiny(input_size=(8, 8, 8), window_size=(2, 2, 2))
    x, t, y = inputs(model, 1)
    before = model(x, t, y)
    x[..., 0, 0, 0] += 1.0
    changed = (model(x, t, y) != before).any(dim=1)[0]
    assert changed[:4, :4, :4].any()
    changed[:4, :4, :4] = False
    assert not changed.any()


def test_a_global_block_reaches_everywhere():
    model = tiny(input_size=(8, 8, 8), global_every=2)
    x, t, y = inputs(model, 1)
    before = model(x, t, y)
    x[..., 0, 0, 0] += 1.0
    assert (model(x, t, y) != before).any(dim=1).all()


def test_a_fresh_model_answers_zero():
    model = DiT3D(DiT3DConfig(depth=1))
    x, t, y = inputs(model)
    assert torch.equal(model(x, t, y), torch.zeros_like(x))


def test_the_seed_configuration_has_33_million_parameters():
    assert sum(p.numel() for p in DiT3D(DiT3DConfig()).parameters()) == pytest.approx(33e6, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_heads": 5}, "num_heads is 5"),
        ({"depth": 0}, "depth is 0"),
        ({"patch_size": (0, 1, 1)}, "patch_size"),
        ({"class_dropout_prob": 1.0}, "class_dropout_prob"),
    ],
)
def test_impossible_configurations_name_the_key(changes, word):
    with pytest.raises(ValueError, match=word):
        DiT3DConfig(**changes)


def test_latents_of_another_shape_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match="takes"):
        model(torch.zeros(1, 2, 5, 7, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
