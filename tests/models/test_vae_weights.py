"""Checkpoints of autoencoders: however they are wrapped, and what is said of those that do not fit."""

from dataclasses import replace

import pytest
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
        lambda state: {name: value.half() for name, value in state.items()},
    ],
)
def test_weights_come_out_of_their_wrapping(wrap):
    state = weights()
    found = unwrap(wrap(state))
    check_weights(found, SMALL)
    assert found.keys() == state.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "a Tensor is no state dict"),
        ({"epoch": 3, "net": {}}, "entry 'epoch' is not a tensor"),
        ({"model": [1]}, "a list is no state dict"),
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
