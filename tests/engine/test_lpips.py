"""LPIPS of the volumes of a set: a set that varies as the real one passes, one that varies less does not."""

import sys

import numpy as np
import pytest
import torch
from ray import cloudpickle

from voxfleet.data.sets import VolumeSet
from voxfleet.engine.lpips import lpips_figure, read_network
from voxfleet.engine.measures import Measured, Measuring
from voxfleet.errors import UserError

SHAPE = (8, 9, 10)
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class MeanAbsolute(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))


class InMemory(VolumeSet):
    def read(self, rows):
        return [self.parts[row] for row in rows], [self.affine] * len(rows)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.pt"
    torch.jit.save(torch.jit.script(MeanAbsolute()), path)
    return str(path)


def measured(n, spread, seed):
    """Volumes whose slices are constant, at random levels around 1/2."""
    levels = 0.5 + spread * (np.random.default_rng(seed).random(n) - 0.5)
    volumes = np.broadcast_to(levels[:, None, None, None], (n, *SHAPE)).astype(np.float32)
    names = np.array([f"{seed}-{number}" for number in range(n)])
    text = {"folder": "memory", "digest": "", "classes": ("HC", "TLE"), "names": names, "subjects": names}
    rows = {"labels": np.zeros(n, int), "splits": np.full(n, "train"), "contents": names}
    where = {"parts": volumes, "affine": np.eye(4)}
    how = Measuring(
        folder="",
        basis="",
        shape=SHAPE,
        affine=np.eye(4),
        positions=((4,), (4,), (5,)),
        autoencoder="",
        slice_networks=(),
        inception=None,
        classifier=None,
        segmenter=None,
        label_maps={},
        label_values=(1, 2),
        threads=1,
        device="cpu",
    )
    scalars = {"finite": np.ones(n), "csf_ml": np.ones(n)}
    return Measured(InMemory(**text, **rows, **where), scalars, volumes, np.ones((n, 3)), {}, None, how)


@pytest.mark.usefixtures("ray_session")
def test_a_set_that_varies_less_is_told_by_how_much(network):
    real = measured(40, 0.8, 0)
    like, less = (lpips_figure(network, real, measured(30, s, 1), repeats=40, seed=0) for s in (0.8, 0.2))
    assert like.passed
    assert like.floor.low < 1 < like.floor.high
    assert less.passed is False
    assert less.found.value == pytest.approx(like.found.value / 4, rel=1e-3)  # the same levels, four times as close
    assert less.found.high < 0.5
    assert less.found.n == 16  # 32 real volumes make two halves


@pytest.mark.usefixtures("ray_session")
def test_sets_that_allow_no_figure_say_why(network):
    real = measured(8, 0.8, 0)
    assert "no two volumes" in lpips_figure(network, real, measured(1, 0.8, 1), repeats=20, seed=0).reason
    assert "no two real" in lpips_figure(network, measured(8, 0, 0), real, repeats=20, seed=0).reason


def test_a_network_that_cannot_be_used_is_named(network, tmp_path):
    assert read_network(network, SHAPE)
    with pytest.raises(UserError, match=r"nothing\.pt"):
        read_network(str(tmp_path / "nothing.pt"), SHAPE)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match=r"features\.lpips .*text\.pt: it is no TorchScript file"):
        read_network(str(tmp_path / "text.pt"), SHAPE)
