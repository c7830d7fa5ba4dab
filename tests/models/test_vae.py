from dataclasses import asdict, replace

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

from voxfleet.models.vae import AutoencoderConfig, build_autoencoder, decode, encode

SMALL = AutoencoderConfig(channels=(8, 16), num_res_blocks=(1, 1), norm_num_groups=4)


def volumes(batch: int = 2, shape: tuple[int, int, int] = (8, 12, 8)) -> torch.Tensor:
    return torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(1))


def monai_twin(config: AutoencoderConfig) -> AutoencoderKlMaisi:
    """MONAI's own, with nothing of ours."""
    return AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        latent_channels=config.latent_channels,
        num_channels=config.channels,
        num_res_blocks=config.num_res_blocks,
        attention_levels=config.attention_levels or (False,) * len(config.channels),
        norm_num_groups=config.norm_num_groups,
        use_convtranspose=config.use_convtranspose,
        num_splits=1,
        save_mem=False,
    ).eval()


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, use_convtranspose=True, num_res_blocks=(0, 2)),
        replace(SMALL, channels=(8, 8, 16), num_res_blocks=(0, 1, 1), attention_levels=(False, False, True)),
    ],
    ids=["plain", "transposed", "attention"],
)
def test_same_function_as_monai(config: AutoencoderConfig) -> None:
    torch.manual_seed(0)
    theirs, ours = monai_twin(config), build_autoencoder(config).eval()
    for parameter in theirs.parameters():  # biases and norms off their initial 0 and 1
        torch.nn.init.normal_(parameter, std=0.2)
    ours.load_state_dict(theirs.state_dict())
    x = volumes()
    with torch.no_grad():
        mu, logvar = encode(ours, x)
        their_mu, their_sigma = theirs.encode(x)
        torch.testing.assert_close(mu, their_mu, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.exp(0.5 * logvar), their_sigma, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(decode(ours, mu), theirs.decode(mu), rtol=1e-4, atol=1e-4)


def test_is_monais_autoencoder() -> None:
    model = build_autoencoder(SMALL)
    assert isinstance(model, AutoencoderKlMaisi)
    assert not any("Maisi" in type(module).__name__ and "Norm" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_shapes(levels: int) -> None:
    config = AutoencoderConfig(channels=(8,) * levels, num_res_blocks=(1,) * levels, norm_num_groups=4)
    model, x = build_autoencoder(config), volumes()
    mu, logvar = encode(model, x)
    assert mu.shape == logvar.shape == (2, *config.latent_shape((8, 12, 8)))
    assert config.downsampling == 2 ** (levels - 1)
    assert decode(model, mu).shape == x.shape


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model, x = build_autoencoder(SMALL).eval(), volumes(3)
    with torch.no_grad():
        whole, alone = encode(model, x)[0], encode(model, x[:1])[0]
        torch.testing.assert_close(whole[:1], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decode(model, whole)[:1], decode(model, alone), rtol=1e-4, atol=1e-5)


def test_logvar_is_bounded() -> None:
    model = build_autoencoder(SMALL)
    for bias, bound in ((1e4, 20.0), (-1e4, -30.0)):
        model.quant_conv_log_sigma.conv.bias.data.fill_(bias)
        assert encode(model, volumes())[1].unique().tolist() == [bound]


def test_learns_a_volume() -> None:
    """Every weight gets a gradient, and a few steps fit a smooth volume."""
    torch.manual_seed(0)
    model, z = build_autoencoder(SMALL), torch.linspace(-3, 3, 8)
    x = torch.exp(-(z[:, None, None] ** 2 + z[:, None] ** 2 + z**2)).expand(2, 1, 8, 8, 8).contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    errors = []
    for _ in range(30):
        mu, logvar = encode(model, x)
        error = (decode(model, mu + torch.exp(0.5 * logvar) * 1e-3) - x).abs().mean()
        optimizer.zero_grad()
        error.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]


def test_output_is_not_clamped() -> None:
    """Clamped, a voxel beyond the range would get no gradient."""
    model, z = build_autoencoder(SMALL), torch.zeros(2, *SMALL.latent_shape((8, 12, 8)))
    bias = list(model.decoder.parameters())[-1]
    bias.data.fill_(5.0)
    out = decode(model, z)
    out.mean().backward()
    assert out.min() > 1
    assert bias.grad.item() == pytest.approx(1.0, rel=1e-3)


def test_splitting_changes_nothing() -> None:
    model = build_autoencoder(SMALL).eval()
    split = build_autoencoder(replace(SMALL, num_splits=2)).eval()
    split.load_state_dict(model.state_dict())
    x = volumes(shape=(32, 16, 16))
    with torch.no_grad():
        mu = encode(model, x)[0]
        torch.testing.assert_close(encode(split, x)[0], mu, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decode(split, mu), decode(model, mu), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(15, 16, 16), (16, 16), (16, 16, 0)])
def test_latent_shape_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        SMALL.latent_shape(shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_num_groups": 3}, "norm_num_groups is 3; it must divide"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0"),
        ({"latent_channels": 0}, "latent_channels is 0"),
        ({"num_splits": 0}, "num_splits is 0"),
        ({"channels": ()}, "channels is"),
        ({"channels": (8, 0)}, "channels is"),
        ({"num_res_blocks": (1,)}, "num_res_blocks is"),
        ({"num_res_blocks": (-1, 1)}, "num_res_blocks is"),
        ({"num_res_blocks": (1, 0)}, "num_res_blocks is"),
        ({"attention_levels": (True,)}, "attention_levels is"),
    ],
)
def test_config_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_config_holds_what_makes_the_weights_fit() -> None:
    twin = build_autoencoder(AutoencoderConfig(**asdict(SMALL)))
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in build_autoencoder(SMALL).state_dict().items()
    }
