"""Checkpoints of autoencoders: however they are wrapped, and what is said of those that do not fit."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from voxfleet.models.vae import AutoencoderConfig, build_autoencoder
from voxfleet.models.vae_weights import check_weights, unwrap

SMALL = AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 2), norm_num_groups=2, attention_levels=(False, True))


def weights(config=SMALL):
    return build_autoencoder(config).state_dict()


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"unet_state_dict": state, "epoch": 3, "scale_factor": torch.tensor(1.0)},
        lambda state: {"state_dict": prefixed("module.", state)},
        lambda state: {"model": prefixed("_orig_mod.module.", state), "optimizer": {}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"net": state},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}}},
        *[
            lambda state, p=p: {"state_dict": prefixed(p, state)}
            for p in ("model.", "autoencoder.", "ema_model.", "a.b.")
        ],
        lambda state: {"state_dict": prefixed("autoencoder.", state) | {"discriminator.0.weight": torch.ones(1, 2)}},
        lambda state: {"autoencoder": state, "perceptual": {"layer1.0.conv1.weight": torch.ones(1)}, "epoch": 3},
        lambda state: {"model": prefixed("net.", state), "loss": prefixed("net.", state)},  # one network, named twice
        lambda state: {name: value.half() for name, value in state.items()},
        lambda state: {name: value.bfloat16() for name, value in state.items()},
        lambda state: {name: value.double() for name, value in state.items()},
        lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
        lambda state: {name: torch._neg_view(-value) for name, value in state.items()},
    ],
)
def test_weights_come_out_of_their_wrapping(wrap):
    state = weights()
    found = unwrap(wrap(state))
    check_weights(found, SMALL)
    assert found.keys() == state.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.numpy().flags.c_contiguous
        torch.testing.assert_close(value, state[name], rtol=1e-2, atol=1e-4)


def test_views_of_one_storage_become_weights_that_can_be_saved():
    """Sharded training leaves such checkpoints, and safetensors refuses them."""
    state = weights()
    flat = torch.cat([value.flatten() for value in state.values()])
    pieces = flat.split([value.numel() for value in state.values()])
    views = {name: piece.view(state[name].shape) for name, piece in zip(state, pieces, strict=True)}
    for name, value in safetensors.torch.load(safetensors.torch.save(unwrap(views))).items():
        assert torch.equal(value, state[name])


def test_the_weights_of_a_resnet_lose_their_prefix_too():
    state = {"module.layer1.0.conv1.weight": torch.ones(2), "module.bn1.num_batches_tracked": torch.tensor(7)}
    found = unwrap({"state_dict": state, "optimizer": {"step": 3}})
    assert found.keys() == {"layer1.0.conv1.weight", "bn1.num_batches_tracked"}
    assert found["bn1.num_batches_tracked"] == 7


@pytest.mark.parametrize(
    ("wrap", "prefixes"),
    [
        (lambda a, b: prefixed("autoencoder.", a) | prefixed("ema_autoencoder.", b), "autoencoder. ema_autoencoder."),
        (lambda a, b: {"state_dict": a, "ema": prefixed("module.", b)}, "state_dict. ema.module."),
        (lambda a, b: a | prefixed("ema_model.", b), " ema_model."),
    ],
)
def test_two_sets_of_weights_are_no_choice(wrap, prefixes):
    content = wrap(weights(), weights())
    one, other = prefixes.split(" ")
    with pytest.raises(ValueError, match=f"under the prefixes '{one}' and '{other}'; put the state dict that you mean"):
        unwrap(content)


@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage|torch.quantize)")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.to_sparse(), "is a sparse_coo Tensor; save a dense one"),
        (lambda w: w.flatten(1).to_sparse_csr(), "is a sparse_csr Tensor"),
        (lambda w: w.flatten(1).to_sparse_bsr((1, 1)), "is a sparse_bsr Tensor"),
        (lambda w: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is a nested Tensor"),
        (lambda w: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "is a nested"),
        (lambda w: torch.quantize_per_tensor(w, 0.01, 0, torch.qint8), r"is of torch.qint8; save .*dequantize\(\)"),
        (lambda w: torch.quantize_per_channel(w, torch.ones(4), torch.zeros(4), 0, torch.qint8), "is of torch.qint8"),
        (lambda w: w.to("meta"), "is a meta tensor, which has no values"),
        (lambda w: w.to(torch.complex64), "is of torch.complex64; save real"),
        (lambda w: w.to(torch.complex64).conj(), "is of torch.complex64"),
        (lambda w: torch.tensor(1j), "is of torch.complex64"),
        (lambda w: w.to(torch.uint8), "is of torch.uint8"),
        (lambda w: w > 0, "is of torch.bool"),
        (lambda w: torch.empty(w.shape, dtype=torch.bits8), "is of torch.bits8"),
        (lambda w: torch.empty(w.shape, dtype=torch.float4_e2m1fn_x2), "is of torch.float4_e2m1fn_x2 and shape .4, 1"),
        (lambda w: torch.zeros(1).expand(10**16), "is of torch.float32 and shape .10000000000000000,"),
        (lambda w: "a text", "is not a tensor"),
    ],
)
def test_a_weight_that_is_no_dense_tensor_of_real_numbers_is_named(change, words):
    first = next(iter(weights()))
    content = {"net": weights() | {first: change(weights()[first])}}
    with pytest.raises(ValueError, match=f"^entry 'net.{first}' {words}") as caught:
        unwrap(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "^a Tensor is no state dict"),
        ([1, 2], "^a list is no state dict"),
        ({}, "^holds nothing, no weights of an AutoencoderKlMaisi"),
        ({0: torch.ones(2)}, "^holds 0, no weights of"),
        ({"epoch": 3, "net": {"conv.weight": torch.ones(2)}}, "^holds epoch, net.conv.weight, no weights of"),
        (weights() | {"epoch": 3}, "^entry 'epoch' is not a tensor; put the state dict alone"),
    ],
)
def test_no_state_dict(content, words):
    with pytest.raises(ValueError, match=words):
        unwrap(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": (4, 16)}, r"has shape .*; model.channels is \[4, 8\], but .* \[4, 16\]"),
        (
            {"channels": (4, 8, 8), "num_res_blocks": (1, 2, 1), "attention_levels": None},
            r"model.channels is \[4, 8\], but the weights look like \[4, 8, 8\]",
        ),
        ({"num_res_blocks": (2, 2)}, r"model.num_res_blocks is \[1, 2\], but .* \[2, 2\]"),
        ({"num_res_blocks": (0, 2)}, r"model.num_res_blocks is \[1, 2\], but .* \[0, 2\]"),
        ({"attention_levels": None}, r"model.attention_levels is \[false, true\], but .* \[false, false\]"),
        ({"latent_channels": 3}, r"model.latent_channels is 4, but the weights look like 3"),
    ],
)
def test_the_key_to_blame_is_named(change, words):
    found = weights(replace(SMALL, **change))
    with pytest.raises(ValueError, match=rf"^weight \S+ .*{words}"):
        check_weights(found, SMALL)


@pytest.mark.parametrize("remove", [lambda name: "post_quant" in name, lambda name: name.startswith("decoder.")])
def test_a_missing_weight_is_named(remove):
    found = {name: value for name, value in weights().items() if not remove(name)}
    first = next(name for name in weights() if remove(name))
    with pytest.raises(ValueError, match=f"^weight {first} is missing"):
        check_weights(found, SMALL)


def test_an_output_projection_of_attention_is_not_dropped():
    """MONAI's own loader of older names would drop it, and the network would compute something else."""
    found = weights() | {"encoder.blocks.3.proj_attn.weight": torch.zeros(8, 8)}
    with pytest.raises(ValueError, match=r"weight encoder.blocks.3.proj_attn.weight is not one .*output projection"):
        check_weights(found, SMALL)


def test_what_stands_beside_the_weights_without_a_prefix_is_named():
    """Without a prefix nothing shows that it is another network's."""
    with pytest.raises(ValueError, match=r"^weight num_batches_tracked is not one of the architecture"):
        check_weights(unwrap(weights() | {"num_batches_tracked": torch.tensor(3)}), SMALL)


def test_a_weight_without_elements_is_named():
    found = unwrap(weights() | {"quant_conv_mu.conv.bias": torch.zeros(0)})
    with pytest.raises(ValueError, match=r"^weight quant_conv_mu.conv.bias has shape \(0,\)"):
        check_weights(found, SMALL)


def test_other_networks_are_told_apart():
    found = weights()
    found["encoder.blocks.0.conv.conv.weight"] = torch.zeros(4, 3, 3, 3, 3)
    with pytest.raises(ValueError, match="only autoencoders of one image channel"):
        check_weights(found, SMALL)
    with pytest.raises(ValueError, match="not the weights of an AutoencoderKlMaisi"):
        check_weights({"blocks.0.weight": torch.zeros(3)}, SMALL)


def test_a_weight_that_is_not_finite_is_named():
    found = weights()
    found["quant_conv_mu.conv.bias"][1] = torch.nan
    with pytest.raises(ValueError, match=r"weight quant_conv_mu.conv.bias is not finite"):
        check_weights(found, SMALL)
