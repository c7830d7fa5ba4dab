"""Training a classifier on arrays: it learns, it repeats itself, its draws are balanced."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from voxfleet.errors import UnfitError
from voxfleet.models.classifier import ClassifierConfig
from voxfleet.train.classifier import (
    ClassifierAugmentConfig,
    ClassifierTrainingConfig,
    Samples,
    augmented,
    balanced_epoch,
    predict,
    train_classifier,
)

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ClassifierConfig(input_size=(8, 8, 8), width=0.25, depth=0.1)
CONFIG = ClassifierTrainingConfig(epochs=4, batch_size=8, lr=3e-3)
PLAIN = ClassifierAugmentConfig(shift=0, gamma=0.0, noise=0.0)


def planted(rows, seed, low=0.0):
    """Noise, with a bright corner in volumes of class 1."""
    rng = np.random.default_rng(seed)
    volumes, labels = rng.random((rows, 8, 8, 8), dtype=np.float32) * 0.5, np.arange(rows) % 2
    volumes[labels == 1, :4, :4, :4] += 0.5
    return Samples(volumes.__getitem__, np.arange(rows), labels)


def train(config=CONFIG, seed=0, **options):
    return train_classifier(MODEL, config, planted(32, 0), planted(8, 1), seed=seed, **options)


def test_learns_a_planted_signal_and_keeps_the_best_epoch():
    model, trained = train()
    assert trained.best == min(trained.history, key=lambda point: point["val_loss"])
    assert [point["step"] for point in trained.history] == [4, 8, 12, 16]
    unseen = planted(16, 2)
    scores = predict(model, unseen, batch_size=5)
    assert scores.shape == (16, 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    assert (scores.argmax(axis=1) == unseen.labels).mean() >= 0.9
    chosen = predict(model, planted(8, 1), batch_size=8)[np.arange(8), planted(8, 1).labels]
    assert -np.log(chosen).mean() == pytest.approx(trained.best["val_loss"], rel=1e-4)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_generators_alone():
    short = replace(CONFIG, epochs=1)
    before = torch.get_rng_state()
    model, first = train(short)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    (again, second), (other, _) = train(short), train(short, seed=1)
    assert first.history == second.history
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert not torch.equal(other.head.weight, model.head.weight)


def test_an_epoch_has_as_many_draws_as_are_asked_for():
    assert train(replace(CONFIG, epochs=1), draws=11)[1].history[0]["step"] == 2


def test_a_loss_that_is_not_finite_is_said():
    broken = planted(8, 0)
    with pytest.raises(UnfitError, match="not finite in epoch 1; lower training"):
        train_classifier(MODEL, CONFIG, replace(broken, read=lambda rows: broken.read(rows) * np.nan), broken, seed=0)


@pytest.mark.parametrize("draws", [1, 6, 30, 31])
def test_classes_are_drawn_equally_often(draws):
    labels = np.array([0] * 20 + [1] * 4)
    rows = balanced_epoch(labels, draws, np.random.default_rng(0))
    assert len(rows) == draws
    assert abs(np.diff(np.bincount(labels[rows], minlength=2))[0]) == draws % 2
    counts = np.bincount(rows, minlength=24)
    for label in (0, 1):  # none again before all were
        assert np.ptp(counts[labels == label]) <= 1


def test_augmentation_changes_each_volume_in_its_own_way():
    x = torch.rand(6, 1, 8, 8, 8)
    assert torch.equal(augmented(x, PLAIN), x)
    for change in ({"gamma": 0.5}, {"noise": 0.1}, {"shift": 2}, {"mirror": True}):
        y = augmented(x, replace(PLAIN, **change))
        assert y.shape == x.shape
        assert not torch.equal(y, x)
    mirrored = augmented(x, replace(PLAIN, mirror=True))
    assert all(torch.equal(b, a) or torch.equal(b, a.flip(1)) for a, b in zip(x, mirrored, strict=True))
    inside = torch.zeros(20, 1, 8, 8, 8)
    inside[:, :, 3, 4, 5] = 1
    places = augmented(inside, replace(PLAIN, shift=2)).nonzero()[:, 2:] - torch.tensor([3, 4, 5])
    assert len(places) == 20
    assert places.abs().max() == 2
    assert len(places.unique(dim=0)) > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": 0}, "lr is 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"validation": 0}, "validation is 0"),
        ({"precision": "float16"}, "precision is 'float16'"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
    with pytest.raises(ValueError, match="gamma is -1"):
        ClassifierAugmentConfig(gamma=-1)
