"""The classifiers: the paper's table, shapes, independence of samples, gradients."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from voxfleet.models.classifier import CLASSIFIERS, STAGES, ClassifierConfig, build_classifier

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ClassifierConfig(input_size=(16, 20, 16), width=0.25, depth=0.1)
BOTH = [replace(TINY, name=name) for name in CLASSIFIERS]
IDS = list(CLASSIFIERS)
PAPERS = 20_177_488  # parameters of EfficientNetV2-S in 2D without its last layer, in torchvision's implementation


def volumes(batch=2, shape=(16, 20, 16)):
    return torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(1))


def on_meta(config):
    with torch.device("meta"):
        return build_classifier(config)


def test_parameters_are_those_of_the_paper_with_a_third_axis():
    model = on_meta(ClassifierConfig())
    flat = {
        name: parameter.numel() // (3 if parameter.shape[2:] == (3, 3, 3) else 1)
        for name, parameter in model.trunk.named_parameters()
    }
    first = next(iter(flat))
    flat[first] *= 3  # colours
    assert sum(flat.values()) == PAPERS
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_397_650
    assert sum(parameter.numel() for parameter in on_meta(ClassifierConfig(name="efficientnet-b0")).parameters()) < 5e6


@pytest.mark.parametrize("config", BOTH, ids=IDS)
def test_weights_are_drawn_for_as_many_as_they_feed(config):
    """A depthwise kernel feeds one channel, not all: otherwise its first weights are a tenth of what they should be."""
    torch.manual_seed(0)
    convolutions = [module for module in build_classifier(config).trunk.modules() if isinstance(module, nn.Conv3d)]
    large = [module for module in convolutions if module.weight.numel() > 2000]
    assert any(module.groups > 1 for module in large)
    for module in large:
        fed = module.out_channels // module.groups * module.weight[0, 0].numel()
        assert module.weight.std().item() == pytest.approx((2 / fed) ** 0.5, rel=0.1)


def test_stages_have_the_shapes_of_the_paper():
    model, x = on_meta(ClassifierConfig()), torch.empty(1, 1, 96, 128, 96, device="meta")
    seen = []
    for layer in model.trunk:
        x = layer(x)
        seen.append(tuple(x.shape[1:3]))  # channels and the first edge
    ends = [sum(stage.blocks for stage in STAGES[: number + 1]) for number in range(len(STAGES))]
    assert seen[0] == (24, 48)
    assert [seen[end] for end in ends] == [(24, 48), (48, 24), (64, 12), (128, 6), (160, 6), (256, 3)]
    assert x.shape == (1, 1280, 3, 4, 3)


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(
    ("shape", "map_shape"),
    [((8, 8, 8), (4, 4, 4)), ((16, 20, 16), (4, 5, 4)), ((32, 40, 32), (4, 5, 4)), ((64, 112, 64), (4, 7, 4))],
)
def test_small_volumes_keep_an_edge_of_four(name, shape, map_shape):
    model = on_meta(replace(TINY, name=name, input_size=shape))
    assert model.trunk(torch.empty(1, 1, *shape, device="meta")).shape[2:] == map_shape


@pytest.mark.parametrize("name", IDS)
def test_without_a_size_all_strides_are_kept(name):
    model = on_meta(replace(TINY, name=name, input_size=None))
    assert model.trunk(torch.empty(1, 1, 64, 128, 64, device="meta")).shape[2:] == (2, 4, 2)


@pytest.mark.parametrize("config", BOTH, ids=IDS)
def test_a_sample_does_not_depend_on_its_batch(config):
    model, x = build_classifier(config).eval(), volumes(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model.features(x)[1:], model.features(x[1:]), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(model(x)[0], model(x)[1])


@pytest.mark.parametrize("config", BOTH, ids=IDS)
def test_every_parameter_gets_a_gradient(config):
    model = build_classifier(replace(config, drop_path=0.0, depth=0.2))
    nn.functional.cross_entropy(model(volumes()), torch.tensor([0, 1])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("config", BOTH, ids=IDS)
def test_logits_are_the_last_layer_of_the_features(config):
    model, x = build_classifier(config).eval(), volumes()
    assert model.features(x).shape == (2, config.channels(1280))
    torch.testing.assert_close(model(x), model.head(model.features(x)))
    torch.testing.assert_close(model.features(x), model.trunk(x).mean(dim=(2, 3, 4)))
    assert not any(isinstance(module, nn.BatchNorm3d) for module in model.modules())


def test_training_leaves_out_blocks_and_evaluation_does_not():
    model, x = build_classifier(replace(TINY, depth=0.3, drop_path=0.9, dropout=0.0)), volumes()
    assert not torch.equal(model.features(x), model.features(x))
    assert torch.equal(model.eval().features(x), model.features(x))


def test_config_holds_what_makes_the_weights_fit():
    twin = build_classifier(ClassifierConfig(**asdict(TINY)))
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in build_classifier(TINY).state_dict().items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet"}, "name is 'resnet'; it must be one of efficientnetv2-s, efficientnet-b0"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"input_size": (8, 8)}, "input_size is"),
        ({"width": 0}, "width is 0"),
        ({"depth": -1}, "depth is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"drop_path": -0.1}, "drop_path is -0.1"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
