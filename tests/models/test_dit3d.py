"""DiT3D: windows against a masked oracle, shapes, independence, gradients, initial zeros."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.attention import plan_windows, split_axis
from voxfleet.models.execution import MODES, autocast, for_inference

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


def masked(model):
    """The oracle: ``model`` with every token in the grid's order, attending to all under a mask of its own window."""
    config = model.config
    other = DiT3D(dataclasses.replace(config, window_size=None, strided_every=0, global_every=0))
    other.load_state_dict(model.state_dict())
    for block, kind in zip(other.blocks, config.attention, strict=True):
        block.attention.forward = functools.partial(attend, block.attention, same_window(config, kind))
    return other.eval()


def same_window(config, kind):
    axes = []
    for length, size in zip(config.grid, config.window_size, strict=True):
        parts = 1 if kind == "global" else math.ceil(length / min(length, size))
        index = np.arange(length)
        cut = [index[i::parts] for i in range(parts)] if kind == "strided" else np.array_split(index, parts)
        axes.append(sum(number * np.isin(index, part) for number, part in enumerate(cut)))
    labels = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    return torch.tensor((labels[:, None] == labels[None]).all(axis=2))


def attend(attention, mask, x):
    B, T, E = x.shape
    q, k, v = attention.qkv(x).reshape(B, T, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    return attention.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, T, E))


@settings(max_examples=40)
@given(
    size=shape3,
    patch=st.tuples(*[st.integers(1, 3)] * 3),
    window=st.tuples(*[st.integers(1, 6)] * 3),
    depth=st.integers(1, 4),
    global_every=st.integers(0, 3),
    strided_every=st.integers(0, 2),
)
def test_the_model_equals_one_that_attends_to_all_tokens_under_a_mask(size, patch, window, **blocks):
    model = tiny(input_size=size, patch_size=patch, window_size=window, **blocks)
    x, t, y = inputs(model, 2)
    with torch.no_grad():
        expected = masked(model)(x, t, y)
        torch.testing.assert_close(model(x, t, y), expected, rtol=1e-5, atol=1e-5)


@given(grid=shape3, window=shape3)
def test_strided_windows_have_the_groups_of_the_others_and_every_token_once(grid, window):
    plain, strided = plan_windows(grid, window), plan_windows(grid, window, strided=True)
    assert strided.groups == plain.groups
    assert sorted(strided.order) == sorted(plain.order) == list(range(math.prod(grid)))


@settings(max_examples=20)
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


@pytest.mark.parametrize("size", [(4, 8, 14, 8), (4, 28, 34, 28), (3, 7, 11, 5), (8, 13, 9, 21)])
@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 2, 2), (4, 4, 4), (4, 2, 4), (1, 2, 3)])
@pytest.mark.parametrize("window", [(4, 4, 4), (2, 3, 5), (40, 40, 40)])
def test_output_has_the_size_of_the_input_and_every_parameter_a_gradient(size, patch, window):
    tokens = math.prod(math.ceil(n / p) for n, p in zip(size[1:], patch, strict=True))
    depth, batch = (3, 2) if tokens <= 10_000 else (1, 1)  # the largest window: attention over 27,000 tokens
    changes = {"depth": depth, "strided_every": 2, "global_every": 3}
    model = tiny(in_channels=size[0], input_size=size[1:], patch_size=patch, window_size=window, **changes)
    x, t, y = inputs(model, batch)
    out = model(x, t, y)
    assert out.shape == x.shape
    out.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_window_of_one_token_gives_queries_and_keys_no_gradient():
    model = tiny(window_size=(1, 1, 1))
    model(*inputs(model)).square().sum().backward()
    queries, keys, values = model.blocks[0].attention.qkv.weight.grad.chunk(3)
    assert torch.cat([queries, keys]).abs().max() < 1e-6 * values.abs().max()


def test_padding_is_zero_going_in_and_cut_off_coming_out():
    model = tiny(input_size=(3, 7, 11), patch_size=(4, 4, 4))
    padded = tiny(input_size=(4, 8, 12), patch_size=(4, 4, 4))
    x, t, y = inputs(model)
    expected = padded(F.pad(x, (0, 1, 0, 1, 0, 1)), t, y)[:, :, :3, :7, :11]
    torch.testing.assert_close(model(x, t, y), expected)


def test_values_where_only_padding_is_never_matter():
    model = tiny(input_size=(3, 7, 11), patch_size=(4, 4, 4), depth=1)
    x, t, y = inputs(model)
    before = model(x, t, y)
    only_padding = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    only_padding[:, 3] = True  # the one patch along D has three real voxels
    with torch.no_grad():
        model.patch_embedding.weight[:, only_padding.flatten()] = 1e6
        model.final_layer.linear.weight[only_padding.flatten()] = 1e6
    torch.testing.assert_close(model(x, t, y), before)


def test_a_sample_does_not_depend_on_its_batch():
    model = tiny()
    batch = inputs(model, 4)
    before = model(*batch)
    for values in batch:  # latents, timesteps, labels
        values[0] += 1
        after = model(*batch)
        assert torch.equal(before[1:], after[1:])
        assert not torch.equal(before[0], after[0])
        before = after


def test_without_global_blocks_a_voxel_changes_its_own_window_only():
    model = tiny(input_size=(8, 8, 8), window_size=(2, 2, 2))
    x, t, y = inputs(model, 1)
    before = model(x, t, y)
    x[..., 0, 0, 0] += 1.0
    changed = (model(x, t, y) != before).any(dim=1)[0]
    assert changed[:4, :4, :4].any()
    changed[:4, :4, :4] = False
    assert not changed.any()


@pytest.mark.parametrize("kind", ["global_every", "strided_every"])
def test_a_global_or_strided_block_reaches_everywhere(kind):
    model = tiny(input_size=(8, 8, 8), **{kind: 2})
    x, t, y = inputs(model, 1)
    before = model(x, t, y)
    x[..., 0, 0, 0] += 1.0
    assert (model(x, t, y) != before).any(dim=1).all()


def test_a_block_is_global_strided_or_in_windows_by_its_number():
    config = DiT3DConfig(depth=6, global_every=3, strided_every=2)
    assert config.attention == ("window", "strided", "global", "strided", "window", "global")
    assert DiT3DConfig(depth=2, window_size=None, strided_every=2).attention == ("global", "global")


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_a_fresh_model_answers_zero(learn_sigma):
    model = DiT3D(DiT3DConfig(depth=1, learn_sigma=learn_sigma))
    x, t, y = inputs(model)
    assert torch.equal(model(x, t, y), torch.zeros(3, 8 if learn_sigma else 4, 8, 14, 8))


@pytest.mark.parametrize(("name", "millions"), [("S/4", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_named_sizes_have_the_parameters_of_the_paper(name, millions):
    config = DiT3DConfig.named(name, input_size=(8, 14, 8))
    assert config.patch_size == (int(name[-1]),) * 3
    with torch.device("meta"):
        assert sum(p.numel() for p in DiT3D(config).parameters()) == pytest.approx(millions * 1e6, rel=0.02)


def test_the_defaults_are_the_seeds():
    assert DiT3DConfig.named("S/4") == DiT3DConfig()


@pytest.mark.parametrize("name", ["M/2", "S", "S/", "S/0", "/4"])
def test_an_unknown_size_is_refused(name):
    with pytest.raises(ValueError, match=r"S, B, L, XL|patch_size"):
        DiT3DConfig.named(name)


def test_gradient_checkpointing_saves_memory_and_changes_no_gradient():
    gradients, saved = [], []
    for checkpointing in (False, True):
        model = tiny(depth=4)
        model.gradient_checkpointing = checkpointing
        x, t, y = inputs(model)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda v, kept=kept: kept.append(v.numel()) or v, lambda v: v):
            out = model(torch.ones_like(x), t, y).sum()
        out.backward()
        gradients.append([p.grad for p in model.parameters()])
        saved.append(sum(kept))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert saved[1] < saved[0] / 3


def test_the_model_compiles_as_one_graph_once_for_each_batch_size():
    model = tiny(depth=4, strided_every=2, global_every=4, learn_sigma=True)
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=counter)
    for batch in (3, 3, 6, 3, 6):
        x, t, y = inputs(model, batch)
        with torch.no_grad():
            assert torch.equal(compiled(x, t.float(), y), model(x, t.float(), y))
    assert counter.frame_count == 2


@pytest.mark.slow
def test_more_batch_sizes_compile_than_pytorch_allows_by_itself():
    model = tiny(depth=1)
    MODES["compiled"](model)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    for batch in range(1, 11):
        x, t, y = inputs(model, batch)
        with torch.no_grad():
            assert torch.equal(compiled(x, t.float(), y), model(x, t.float(), y))


def test_windows_that_nothing_crosses_are_known():
    long = {"input_size": (28, 34, 28), "window_size": (4, 4, 4)}
    assert DiT3DConfig(**long).is_cut
    assert not DiT3DConfig(**long, strided_every=2).is_cut
    assert not DiT3DConfig(**long, global_every=4).is_cut
    assert not DiT3DConfig().is_cut  # the seed's window holds all of its tokens


def test_bfloat16_keeps_embeddings_and_the_stream_in_float32():
    model = tiny(depth=2, input_size=(8, 8, 8))
    x, t, y = inputs(model)
    seen = []
    model.blocks[1].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    with torch.no_grad():
        exact = model(x, t, y)
        with autocast(torch.device("cpu"), "bfloat16"):
            cast = model(x, t, y)
            once = for_inference(model, "bfloat16")(x, t, y)
    assert model.blocks[0].mlp[0].weight.dtype == torch.bfloat16
    assert seen == [torch.float32] * 3
    assert torch.equal(cast, once)
    assert (cast - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_heads": 5}, "num_heads is 5"),
        ({"depth": 0}, "depth is 0"),
        ({"patch_size": (0, 1, 1)}, "patch_size"),
        ({"class_dropout_prob": 1.0}, "class_dropout_prob"),
        ({"input_size": (8, 0, 8)}, "input_size"),
        ({"window_size": (4, 4, 0)}, "window_size"),
        ({"strided_every": -1}, "strided_every is -1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
    ],
)
def test_impossible_configurations_name_the_key(changes, word):
    with pytest.raises(ValueError, match=word):
        DiT3DConfig(**changes)


def test_latents_of_another_shape_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match="takes"):
        model(torch.zeros(1, 2, 5, 7, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


GRID = {"input_size": (10, 14, 6), "patch_size": (2, 2, 2), "depth": 4}  # 5 x 7 x 3 tokens


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"window_size": (3, 4, 3)}, {"window_size": (4, 4, 3)}, True),  # 5 tokens are cut as 3 + 2 by both
        ({"window_size": (3, 4, 3)}, {"window_size": (3, 3, 3)}, False),
        ({"window_size": (5, 7, 3)}, {"window_size": (9, 9, 9)}, True),
        ({"window_size": (9, 9, 9)}, {"window_size": None}, True),
        ({"window_size": (9, 9, 9), "global_every": 2}, {"window_size": None, "strided_every": 3}, True),
        ({"window_size": (3, 4, 3), "global_every": 1}, {"window_size": (2, 2, 2), "global_every": 1}, True),
        ({"window_size": (3, 4, 3), "global_every": 5}, {"window_size": (3, 4, 3)}, True),  # beyond the last block
        ({"window_size": (3, 4, 3), "global_every": 2}, {"window_size": (3, 4, 3)}, False),
        ({"window_size": (3, 4, 3), "global_every": 2, "strided_every": 2}, {"global_every": 2}, True),
        ({"window_size": (3, 4, 3), "global_every": 2, "strided_every": 3}, {"global_every": 2}, False),
        ({"depth": 4}, {"depth": 3}, False),
        ({"num_heads": 2}, {"num_heads": 3}, False),
    ],
)
def test_configurations_of_one_network_are_known(one, other, same):
    configs = [DiT3DConfig(**{**GRID, **changes}) for changes in (one, other)]
    assert (configs[0].network == configs[1].network) == same
    if same:  # and they do compute the same
        answers = []
        for config in configs:
            torch.manual_seed(0)
            model = DiT3D(config).eval()
            torch.nn.init.normal_(model.final_layer.linear.weight)
            for block in model.blocks:
                torch.nn.init.normal_(block.modulation.weight, std=0.5)
            x = torch.randn(1, 4, 10, 14, 6, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                answers.append(model(x, torch.tensor([500.0]), torch.tensor([1])))
        torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-4)  # tokens of another order are added in another order
