"""The autoencoder's loss: its perceptual and adversarial terms, on one device."""

import dataclasses

import pytest
import torch
from monai.networks.nets.resnet import ResNetFeatures

from voxfleet.diffusion.noise import Draws
from voxfleet.errors import UserError
from voxfleet.models.perceptual import build_features, perceptual_distance
from voxfleet.models.vae import AutoencoderConfig
from voxfleet.train.adversary import Adversary, smallest_edge
from voxfleet.train.autoencoder import AutoencoderLossConfig, AutoencoderRecipe, autoencoder_weights, load_features
from voxfleet.train.optim import OptimConfig
from voxfleet.train.state import TrainState, read_state, state_bytes
from voxfleet.train.step import train_step

MODEL = AutoencoderConfig(channels=(4, 8), num_res_blocks=(0, 1), norm_num_groups=4, use_convtranspose=True)
LOSS = AutoencoderLossConfig(adversarial_weight=0.5, discriminator_channels=4, discriminator_layers=1)
PLAIN = AutoencoderRecipe(MODEL, AutoencoderLossConfig())
JUDGED = AutoencoderRecipe(MODEL, LOSS)
OPTIM = OptimConfig(lr=1e-3, ema_decay=0.9)


def volumes(rows=3, seed=0):
    return torch.rand(rows, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


def fresh(recipe):
    torch.manual_seed(0)
    model = recipe.build()
    return TrainState.create(model, OPTIM, groups=recipe.parameter_groups(model))


def step(state, recipe, epoch=0, optim=OPTIM, **options):
    data, settings = {"volume": volumes(seed=epoch)}, {"scale": 1 / 3, "total_steps": 20, "precision": "float32"}
    draws = Draws(0, epoch, torch.arange(3))
    return train_step(state, state.model, recipe, data, draws, optim=optim, **settings | options)


def weights(state, part):
    return {name: value for name, value in state.model.state_dict().items() if name.startswith(part)}


def gradients(loss, module):
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(module.parameters(), found, strict=True)]


def test_each_side_learns_from_its_own_term_alone():
    model = fresh(JUDGED).model
    found = JUDGED.loss(model, {"volume": volumes()}, Draws(0, 0, torch.arange(3)))
    assert set(found) == {"loss", "l1", "kl", "adversarial", "discriminator"}
    own = {
        model.autoencoder: found["l1"] + LOSS.kl_weight * found["kl"] + LOSS.adversarial_weight * found["adversarial"],
        model.adversary: found["discriminator"],
    }
    for module, loss in own.items():
        whole, alone = gradients(found["loss"].sum(), module), gradients(loss.sum(), module)
        assert sum(gradient.abs().sum() for gradient in whole) > 0
        for a, b in zip(whole, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert sum(gradient.abs().sum() for gradient in gradients(found["adversarial"].sum(), model.autoencoder)) > 0


def test_the_terms_are_least_squares():
    torch.manual_seed(0)
    adversary = Adversary(4, 1)
    real, fake = volumes()[:, None], volumes(seed=1)[:, None]
    fooling, telling = adversary(real, fake)
    verdicts = {name: adversary.discriminator(x)[-1] for name, x in (("real", real), ("fake", fake))}
    torch.testing.assert_close(fooling[1], (verdicts["fake"][1] - 1).square().mean())
    expected = ((verdicts["real"][1] - 1).square().mean() + verdicts["fake"][1].square().mean()) / 2
    torch.testing.assert_close(telling[1], expected)
    alone = adversary(real[1:2], fake[1:2])
    torch.testing.assert_close(alone[1][0], telling[1])  # the rest of the batch has no say


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_volume_is_judged_and_a_smaller_one_is_not(layers):
    adversary, edge = Adversary(2, layers), smallest_edge(layers)
    assert adversary.discriminator(torch.rand(1, 1, edge, edge, edge))[-1].shape == (1, 1, 1, 1, 1)
    with pytest.raises((RuntimeError, ValueError)):
        adversary.discriminator(torch.rand(1, 1, edge - 1, edge - 1, edge - 1))


def test_before_its_start_an_adversary_changes_nothing():
    late = AutoencoderRecipe(MODEL, dataclasses.replace(LOSS, adversarial_start=2))
    plain, judged = fresh(PLAIN), fresh(late)
    start = {name: value.clone() for name, value in weights(judged, "adversary.").items()}
    for epoch in range(2):
        losses, _ = step(judged, late, epoch)
        torch.testing.assert_close(losses["loss"], step(plain, PLAIN, epoch)[0]["loss"], rtol=0, atol=0)
        assert losses["discriminator"].tolist() == [0.0] * 3
        assert all(parameter.grad is None for parameter in judged.model.parameters())
    assert all(torch.equal(value, plain.model.state_dict()[name]) for name, value in weights(judged, "auto").items())
    assert all(torch.equal(value, start[name]) for name, value in weights(judged, "adversary.").items())
    assert step(judged, late, 2)[0]["discriminator"].min() > 0
    assert not all(torch.equal(value, start[name]) for name, value in weights(judged, "adversary.").items())


def test_two_steps_save_load_two_steps_equal_four_with_an_adversary():
    whole, first = fresh(JUDGED), fresh(JUDGED)
    for epoch in range(4):
        step(whole, JUDGED, epoch)
    for epoch in range(2):
        step(first, JUDGED, epoch)
    second = TrainState.create(model := JUDGED.build(), OPTIM, groups=JUDGED.parameter_groups(model))
    second.load(read_state(state_bytes(first.snapshot())))
    for epoch in range(2, 4):
        step(second, JUDGED, epoch)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
    packaged = autoencoder_weights(second.ema)
    assert packaged.keys() == PLAIN.build().autoencoder.state_dict().keys()


def test_the_discriminator_has_a_learning_rate_of_its_own_and_is_clipped_apart():
    slow = AutoencoderRecipe(MODEL, dataclasses.replace(LOSS, discriminator_lr_ratio=0.25))
    state = fresh(slow)
    step(state, slow)
    assert [group["lr"] for group in state.optimizer.param_groups] == [1e-3, 2.5e-4]
    clip = dataclasses.replace(OPTIM, clip_norm=1e-3)
    loud = AutoencoderRecipe(MODEL, dataclasses.replace(LOSS, adversarial_weight=1e-12))
    plain, judged = fresh(PLAIN), fresh(loud)
    for epoch in range(2):
        step(plain, PLAIN, epoch, clip)
        step(judged, loud, epoch, clip)
    for name, value in weights(judged, "autoencoder.").items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=0, atol=1e-6)


def test_an_adversarial_training_lowers_the_reconstruction_loss():
    state = fresh(JUDGED)
    l1 = [step(state, JUDGED)[0]["l1"].mean().item() for _ in range(20)]
    assert l1[-1] < 0.95 * l1[0]


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return ResNetFeatures("resnet10", pretrained=False).state_dict()


@pytest.mark.parametrize("name", ["weights.pth", "wrapped.pt"])
def test_the_perceptual_term_is_read_by_path_and_pulls_at_the_reconstruction(tmp_path, resnet, name):
    path = str(tmp_path / name)
    torch.save({"state_dict": {f"module.{k}": v for k, v in resnet.items()}} if "wrapped" in name else resnet, path)
    recipe = AutoencoderRecipe(MODEL, AutoencoderLossConfig(perceptual_weight=0.3, perceptual_weights=path))
    state = fresh(recipe)
    plain, _ = step(fresh(PLAIN), PLAIN)
    losses, _ = step(state, recipe)
    assert torch.equal(losses["l1"], plain["l1"])
    torch.testing.assert_close(losses["loss"], plain["loss"] + 0.3 * losses["perceptual"])
    assert losses["perceptual"].min() > 0
    assert weights(state, "auto").keys() == state.model.state_dict().keys()  # the network is no part of what is saved


def test_the_perceptual_distance_is_none_to_itself_blind_to_the_batch_and_frozen(resnet):
    features = build_features(resnet)
    x, target = volumes()[:, None].requires_grad_(), volumes(seed=1)[:, None]
    found = perceptual_distance(features, x, target)
    assert found.shape == (3,)
    assert perceptual_distance(features, target, target).abs().max() == 0
    torch.testing.assert_close(perceptual_distance(features, x[1:2], target[1:2])[0], found[1])
    found.sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in features.parameters())
    near = target + 0.01 * (x.detach() - target)
    assert (perceptual_distance(features, near, target) < found).all()


def test_weights_of_another_network_are_refused(tmp_path, resnet):
    path = str(tmp_path / "weights.pt")
    torch.save({name: value for name, value in resnet.items() if "layer4" not in name}, path)
    with pytest.raises(
        UserError, match=r"loss.perceptual_weights .*weights.pt: .* not those of a 3D ResNet .*resnet10"
    ):
        load_features(path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perceptual_weight": 0.1}, "set both"),
        ({"perceptual_weights": "a.pt"}, "set both"),
        ({"adversarial_weight": -1.0}, "0 or more"),
        ({"discriminator_layers": 0}, "at least 1"),
        ({"discriminator_lr_ratio": 0.0}, "above 0"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ValueError, match=f"{next(iter(change))}.*{message}"):
        AutoencoderLossConfig(**change)
