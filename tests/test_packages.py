"""Packages from Python: what is loaded samples as it was trained, in every sampler, precision and mode."""

import dataclasses

import pytest
import torch

import voxfleet
from voxfleet import storage
from voxfleet.diffusion.guidance import guided
from voxfleet.diffusion.noise import sampling_noise
from voxfleet.diffusion.process import DiffusionConfig
from voxfleet.diffusion.samplers import FLOW_SAMPLERS, SAMPLERS, SamplerConfig, sample, sampler_table
from voxfleet.errors import UserError
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.packages import architecture, read_package_config, write_package

MODEL = DiT3DConfig(in_channels=2, input_size=(4, 6, 4), patch_size=(2, 2, 2), hidden_size=24, depth=2, num_heads=2)


@pytest.fixture
def package(tmp_path):
    """Writes a package of a random network; gives its folder."""

    def write(diffusion=None, **changes):
        config = dataclasses.replace(MODEL, **changes)
        model = DiT3D(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        document = {
            "architecture": architecture(config),
            "diffusion": dataclasses.asdict(diffusion or DiffusionConfig(target="x0")),
            "mean": [1.0, 2.0],
            "std": [0.5, 3.0],
            "geometry": {},
            "classes": ["HC", "TLE"],
            "limits": {},
            "suffix": "T1w",
            "autoencoder": None,
        }
        write_package(str(tmp_path / "model"), "model", model.state_dict(), document)
        return str(tmp_path / "model")

    return write


def test_a_part_of_another_kind_is_one_line(package, tmp_path):
    uri = f"{package()}/config.json"
    other = {"kind": "autoencoder", "shape": [4, 4, 4], "architecture": {"channels": [4], "num_res_blocks": {"0": 1}}}
    storage.write_json(uri, {**storage.read_json(uri), **other})
    with pytest.raises(UserError, match=r"config\.json: architecture: "):
        read_package_config(str(tmp_path / "model"), "autoencoder")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_depends_on_its_label_and_seed_alone(package, sampler):
    diffusion = DiffusionConfig(schedule="flow" if sampler in FLOW_SAMPLERS else "cosine", target="v")
    bundle = voxfleet.load_model(package(diffusion))
    options = {"sampler": sampler, "steps": 4, "guidance_scale": 2.0}
    together = bundle.sample(["HC", "TLE", "TLE"], [5, 6, 7], **options)
    assert together.shape == (3, 2, 4, 6, 4)
    torch.testing.assert_close(bundle.sample([1], [6], **options)[0], together[1], rtol=1e-5, atol=1e-5)
    swapped = bundle.sample(["TLE", "TLE", "HC"], [7, 6, 5], **options)
    torch.testing.assert_close(swapped.flip(0), together, rtol=1e-5, atol=1e-5)
    same_place = bundle.sample(["TLE", "TLE", "HC"], [9, 6, 4], **options)
    assert torch.equal(same_place[1], together[1])
    other = bundle.sample(["TLE", "HC", "TLE"], [5, 6, 8], **options)
    assert not any(torch.equal(a, b) for a, b in zip(other, together, strict=True))


def test_samples_are_given_in_the_units_of_the_latents(package):
    bundle = voxfleet.load_model(package())
    plain = dataclasses.replace(bundle, mean=(0.0, 0.0), std=(1.0, 1.0)).sample([0], [1], steps=3)
    found = bundle.sample([0], [1], steps=3)
    torch.testing.assert_close(found[:, 0], plain[:, 0] * 0.5 + 1)
    torch.testing.assert_close(found[:, 1], plain[:, 1] * 3 + 2)


def test_a_configuration_and_its_fields_say_the_same(package):
    bundle = voxfleet.load_model(package())
    config = SamplerConfig(name="ddim", steps=3, eta=0.5, guidance_interval=(0.2, 0.9))
    assert torch.equal(
        bundle.sample([0], [1], config),
        bundle.sample([0], [1], sampler="ddim", steps=3, eta=0.5, guidance_interval=(0.2, 0.9)),
    )


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_ddpm_draws_the_noise_of_each_seed_with_the_variance_that_was_learned(package, learn_sigma):
    bundle = voxfleet.load_model(package(learn_sigma=learn_sigma))
    found = dataclasses.replace(bundle, mean=(0.0, 0.0), std=(1.0, 1.0)).sample([0, 1], [8, 9], "ddpm", steps=4)
    config = SamplerConfig(name="ddpm", steps=4)
    seeds, shape = torch.tensor([8, 9]), (2, 4, 6, 4)
    with torch.inference_mode():
        expected = sample(
            guided(bundle.model, torch.tensor([0, 1]), null=2),
            sampler_table(config, bundle.process),
            sampling_noise(seeds, 0, shape),
            lambda step: sampling_noise(seeds, step, shape),
        )
        assert bundle.model(expected, seeds, seeds * 0).shape[1] == (4 if learn_sigma else 2)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samples_may_start_from_noise_that_is_given(package, sampler):
    """Of another seed, here; what later steps draw is the seed's own all the same."""
    bundle = voxfleet.load_model(package())
    plain = bundle.sample(["HC", "TLE"], [5, 6], sampler, steps=4)
    noise = bundle.initial_noise([5, 6])
    assert torch.equal(noise, sampling_noise(torch.tensor([5, 6]), 0, (2, 4, 6, 4)))
    assert torch.equal(bundle.sample(["HC", "TLE"], [5, 6], sampler, noise=noise, steps=4), plain)
    other = bundle.sample(["HC", "TLE"], [7, 8], sampler, noise=noise, steps=4)
    assert torch.equal(other, plain) == (sampler == "ddim")
    assert not torch.equal(bundle.sample(["HC", "TLE"], [5, 6], sampler, noise=noise.flip(0), steps=4), plain)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 2, 4, 6, 4\); it must be \(2, 2, 4, 6, 4\)"):
        bundle.sample(["HC", "TLE"], [5, 6], sampler, noise=noise[:1], steps=4)


def test_bfloat16_is_near_float32(package):
    folder = package()
    exact, rounded = (voxfleet.load_model(folder, precision=p).sample([0], [1], steps=3) for p in ("auto", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize(
    ("arguments", "options", "word"),
    [
        ((["MS"], [1]), {}, r"'MS' is not known; the classes are HC, TLE"),
        (([2], [1]), {}, r"2 is not known"),
        ((["HC"], [1, 2]), {}, r"1 labels and 2 seeds"),
        ((["HC"], [1]), {"sampler": "euler"}, r"schedule linear takes one of ddpm, ddim, dpm-solver\+\+"),
        ((["HC"], [1]), {"steps": 1001}, r"1000 timesteps"),
        ((["HC"], [1]), {"step": 10}, r"'step' is not known; the options are steps, guidance_scale"),
    ],
)
def test_bad_requests_say_what_is_allowed(package, arguments, options, word):
    bundle = voxfleet.load_model(package())
    with pytest.raises(ValueError, match=word):
        bundle.sample(*arguments, **options)


@pytest.mark.parametrize(("options", "word"), [({"mode": "fast"}, "eager"), ({"precision": "int8"}, "bfloat16")])
def test_an_unknown_mode_or_precision_lists_the_known_ones(package, options, word):
    with pytest.raises(ValueError, match=word):
        voxfleet.load_model(package(), **options)


@pytest.mark.slow
def test_compiled_sampling_gives_what_eager_does(package):
    folder = package(depth=1, window_size=(2, 2, 2))
    eager, compiled = (
        voxfleet.load_model(folder, mode=m).sample([0, 1], [1, 2], steps=4) for m in ("eager", "compiled")
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
