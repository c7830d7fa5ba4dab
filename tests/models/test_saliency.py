"""Saliency: it lies where the classifier looks, and nowhere else."""

import pytest
import torch
from torch import nn

from voxfleet.models.classifier import Classifier, ClassifierConfig
from voxfleet.models.saliency import GRAD_CAM, SMOOTH, WAYS, Saliency

pytestmark = pytest.mark.usefixtures("one_thread")


class Corner(nn.Module):
    """Feature maps of one corner of the volume: its brightness, and its square."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        seen = torch.zeros_like(x)
        seen[..., :4, :4, :4] = 1
        return torch.cat([x, x**2], dim=1) * seen * self.weight


@pytest.fixture
def model():
    torch.manual_seed(0)
    classifier = Classifier(Corner(), 2, ClassifierConfig()).eval()
    with torch.no_grad():
        classifier.head.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    return classifier


def test_saliency_lies_where_the_classifier_looks(model):
    volume = torch.rand(10, 12, 8)
    maps = Saliency(model)(volume, 1, seed=3)
    assert set(maps) == set(WAYS)
    for values in maps.values():
        assert values.shape == volume.shape
        assert values.sum() == pytest.approx(1, abs=1e-4)
        assert values[:4, :4, :4].sum() == pytest.approx(1, abs=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_speaks_for_the_other_class_and_noise_is_of_the_seed(model):
    volume = torch.rand(10, 12, 8)
    saliency = Saliency(model)
    assert saliency(volume, 0, seed=0)[GRAD_CAM].sum() == 0
    state = torch.get_rng_state()
    first, second, other = saliency(volume, 1, seed=0), saliency(volume, 1, seed=0), saliency(volume, 1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[SMOOTH], second[SMOOTH])
    assert not torch.equal(first[SMOOTH], other[SMOOTH])
