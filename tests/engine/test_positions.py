"""Distances by slice position: where they lie in the head, and that they rise where the sets differ."""

import numpy as np
import pytest

from voxfleet.engine.between import Stored
from voxfleet.engine.comparison import Both
from voxfleet.engine.measures import PLANES, Measuring
from voxfleet.engine.positions import FRECHET, KID, places_mm, position_figures
from voxfleet.metrics.resampling import Pool

FEATURES = 12


def how(**changes):
    affine = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 4, -30], [0, 0, 0, 1]])
    known = {"shape": (11, 13, 17), "affine": affine, "positions": ((2, 5), (3, 6), (4, 8))}
    names = {"folder": "", "basis": "", "autoencoder": "", "slice_networks": ("net",)}
    none = {"inception": None, "classifier": None, "segmenter": None, "label_maps": {}, "label_values": (1, 2)}
    return Measuring(**names, **none, threads=1, device="cpu", **(known | changes))


def both(real, synthetic, moved=()):
    """Sets of the same distribution, but for the (plane, position) in ``moved``."""
    n, rng = real + synthetic, np.random.default_rng(0)
    features = {f"net, {plane}": rng.standard_normal((n, 2, FEATURES)).astype(np.float32) for plane in PLANES}
    for plane, position in moved:
        features[f"net, {plane}"][real:, position] += 2
    features = {name: Stored.of(values) for name, values in features.items()}
    pool = Pool(np.arange(n), np.arange(real), np.arange(real, n))
    rest = {"scalars": {}, "small": np.zeros(n), "spectra": np.zeros(n), "probabilities": None}
    return Both(
        pool=pool,
        classes=("HC",),
        labels=np.zeros(n, int),
        features=features,
        held_out=np.zeros(n, bool),
        **rest,
    )


def test_places_are_ras_coordinates():
    assert places_mm(how()) == [(-6, 0), (-11, -2), (-14, 2)]


def test_places_of_a_turned_grid_are_those_of_the_middle_of_a_slice():
    turned = how().affine
    turned[0, 1] = 0.5
    assert places_mm(how(affine=turned))[0] == (-6 + 3, 3)  # the middle voxel of 13 is the sixth


@pytest.mark.usefixtures("ray_session")
def test_the_place_at_which_sets_differ_stands_out():
    found = position_figures(both(40, 20, [("coronal", 1)]), how(), repeats=20, seed=0)
    places = [("sagittal", -6), ("sagittal", 0), ("coronal", -11), ("coronal", -2), ("axial", -14), ("axial", 2)]
    for way in (KID, FRECHET):
        chosen = [one for one in found if one.way == way]
        assert [(one.plane, one.mm) for one in chosen] == places
        outside = [one.mm for one in chosen if one.found.low > one.floor.high]
        assert outside == [-2], way


@pytest.mark.usefixtures("ray_session")
def test_few_volumes_have_no_frechet_distance_and_one_has_none():
    assert {one.way for one in position_figures(both(8, 8), how(), repeats=20, seed=0)} == {KID}
    assert position_figures(both(3, 8), how(), repeats=20, seed=0) == []


@pytest.mark.usefixtures("ray_session")
def test_many_volumes_are_drawn_from():
    found = position_figures(both(600, 530), how(positions=((2, 5), (), ())), repeats=2, seed=0)
    assert {one.found.n for one in found} == {256}
