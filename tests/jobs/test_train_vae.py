"""train-vae with all its terms, on volumes of the tiny path."""

import json

import pytest
import safetensors.torch
import torch
from monai.networks.nets.resnet import ResNetFeatures

from voxfleet.train.state import read_state

LOSS = [
    *("--loss.adversarial_weight", "0.1", "--loss.adversarial_start", "1", "--loss.discriminator_layers", "2"),
    *("--loss.discriminator_channels", "4", "--loss.perceptual_weight", "0.3"),
]


@pytest.fixture(scope="module")
def train_vae(workspace, tmp_path_factory):
    """Run train-vae with a perceptual and an adversarial term; returns the exit code and the folder of the run."""
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    torch.save(ResNetFeatures("resnet10", pretrained=False).state_dict(), folder / "resnet.pt")

    def run(name, *more):
        places = ["--output", str(folder), "--package", str(folder / f"{name}-package"), "--name", name]
        weights = ["--loss.perceptual_weights", str(folder / "resnet.pt")]
        return workspace.run("train-vae", *places, *LOSS, *weights, *more), folder / name

    return run


EACH_STEP = ("--trainer.log_every", "1")


@pytest.mark.matrix
def test_two_workers_train_all_terms_as_one_does(train_vae):
    """With two workers the adversary's gradients are averaged too, from the first step on and from its start on."""
    points = []
    for workers in ("1", "2"):
        code, folder = train_vae(f"by{workers}", "--resources.workers", workers, *EACH_STEP)
        assert code == 0
        points.append([point for point in json.loads((folder / "history.json").read_text()) if "lr" in point])
    one, two = points
    assert len(one) == 6
    for name in ("loss", "l1", "kl", "perceptual", "adversarial", "discriminator", "grad_norm"):
        assert [point[name] for point in two] == pytest.approx([point[name] for point in one], rel=1e-3), name
    assert [point["discriminator"] > 0 for point in one] == [False] * 2 + [True] * 4


@pytest.mark.matrix
def test_the_package_holds_the_autoencoder_and_the_checkpoint_the_adversary_too(train_vae, workspace):
    code, folder = train_vae("by1", *EACH_STEP)  # complete, where the test above has run
    assert code == 0
    weights = safetensors.torch.load((folder.parent / "by1-package" / "model.safetensors").read_bytes())
    plain = safetensors.torch.load((workspace.demo / "vae" / "model.safetensors").read_bytes())
    assert weights.keys() == plain.keys()
    (newest, *_) = sorted((folder / "checkpoints").iterdir(), reverse=True)
    names = read_state(newest.read_bytes())["model"]
    assert {name.split(".")[0] for name in names} == {"autoencoder", "adversary"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss.perceptual_weights", "missing.pt"], "missing.pt"),
        (["--loss.discriminator_layers", "3"], "loss.discriminator_layers is 3, for volumes of 24 voxels"),
    ],
)
def test_terms_that_cannot_be_are_refused(train_vae, capsys, arguments, message):
    code, folder = train_vae("refused", *arguments)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()
