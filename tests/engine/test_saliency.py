"""What evaluate says of saliency: pieces that merge, shares that are planted, and pictures."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from voxfleet.data.sets import VolumeSet
from voxfleet.engine.saliency import Looked, _look, saliency_figures, saliency_pictures
from voxfleet.models.classifier import ClassifierConfig, build_classifier
from voxfleet.models.saliency import SMOOTH, WAYS
from voxfleet.packages import architecture, write_package

SHAPE = (6, 8, 6)


def looked(n, inside, seed=0):
    rng = np.random.default_rng(seed)
    maps = {way: n * rng.random(SHAPE) for way in WAYS}
    shares = np.zeros(SHAPE)
    shares[1:3, 2:4, 2:4] = n
    values = {way: [inside + 0.1 * i for i in range(n)] for way in WAYS}
    return Looked(n=n, anatomy=n * np.full(SHAPE, 0.5), hippocampi=shares, maps=maps, inside=values)


def test_pieces_merge():
    one, other = looked(2, 1.0), looked(3, 4.0, seed=1)
    both = one.merge(other)
    assert both.n == 5
    for way in WAYS:
        np.testing.assert_allclose(both.maps[way], one.maps[way] + other.maps[way])
        assert both.inside[way] == [*one.inside[way], *other.inside[way]]
    np.testing.assert_allclose(both.anatomy / both.n, 0.5)
    assert both.hippocampi.max() == 5
    blind = Looked(n=1, anatomy=one.anatomy, hippocampi=None, maps=one.maps)
    assert blind.merge(blind).hippocampi is None


def test_a_classifier_that_looks_elsewhere_in_synthetic_volumes_is_told():
    views = {"real": {"TLE": looked(8, 5.0)}, "same": {"TLE": looked(8, 5.0)}, "other": {"TLE": looked(8, 1.0, seed=1)}}
    same, other = (
        {figure.key: figure for figure in saliency_figures(views, name, repeats=50, seed=0)}
        for name in ("same", "other")
    )
    assert set(same) == {
        f"saliency/{way}/TLE{part}" for way in ("grad-cam", "smooth_gradients") for part in ("", "/hippocampi")
    }
    assert same["saliency/grad-cam/TLE"].found.value == pytest.approx(1)
    assert abs(other["saliency/grad-cam/TLE"].found.value) < 0.3
    assert same["saliency/grad-cam/TLE/hippocampi"].passed
    assert other["saliency/grad-cam/TLE/hippocampi"].passed is False
    assert other["saliency/grad-cam/TLE/hippocampi"].found.value == pytest.approx(1.35)
    few = {"real": {"TLE": looked(2, 5.0)}, "few": {"TLE": looked(2, 1.0)}}
    assert all(figure.passed is None for figure in saliency_figures(few, "few", repeats=50, seed=0))


def test_an_empty_map_has_a_reason_and_a_class_that_only_one_set_has_none():
    empty = replace(looked(2, 1.0), maps={way: np.zeros(SHAPE) for way in WAYS})
    views = {"real": {"TLE": looked(2, 1.0)}, "made": {"TLE": empty, "HC": looked(2, 1.0)}}
    figures = saliency_figures(views, "made", repeats=50, seed=0)
    assert {figure.key.split("/")[2] for figure in figures} == {"TLE"}
    assert [figure.reason for figure in figures if not figure.found] == ["a map is empty"] * 2


def test_the_picture_has_a_row_for_each_set_and_class():
    assert saliency_pictures({}) == {}
    (picture,) = saliency_pictures({"real": {"HC": looked(2, 1.0), "TLE": looked(2, 1.0)}})["Saliency"]
    assert picture.png.startswith(b"\x89PNG")
    assert "outlined" in picture.caption
    blind = Looked(n=1, anatomy=np.ones(SHAPE), hippocampi=None, maps=looked(1, 1.0).maps)
    (picture,) = saliency_pictures({"real": {"HC": blind}})["Saliency"]
    assert "outlined" not in picture.caption


class InMemory(VolumeSet):
    def read(self, rows):
        return [self.parts[row] for row in rows], [self.affine] * len(rows)


@pytest.mark.usefixtures("one_thread")
def test_nothing_speaks_outside_of_the_region_that_the_classifier_looks_at(tmp_path):
    config = ClassifierConfig(width=0.25, depth=0.1, num_classes=2, input_size=(8, 10, 8))
    document = {"architecture": architecture(config), "classes": ["HC", "TLE"], "shape": [10, 12, 10], "geometry": {}}
    document["region"] = [[0, 8], [2, 12], [1, 9]]
    write_package(str(tmp_path), "classifier", build_classifier(config).state_dict(), document)
    volumes = np.random.default_rng(0).random((3, 10, 12, 10), dtype=np.float32)
    names, labels = np.array(["a", "b", "c"]), np.array([0, 1, 1])
    text = {"folder": "memory", "digest": "", "classes": ("HC", "TLE"), "names": names, "subjects": names}
    rows = {"labels": labels, "splits": np.full(3, "test"), "contents": names, "parts": volumes, "affine": np.eye(4)}
    how = SimpleNamespace(threads=1, classifier=str(tmp_path), segmenter=None, device="cpu")
    found = _look._function(how, InMemory(**text, **rows), np.array([1, 2]))
    np.testing.assert_allclose(found.anatomy, volumes[1:].sum(axis=0))
    for values in found.maps.values():
        assert values.shape == (10, 12, 10)
        assert values[:8, 2:, 1:9].sum() == pytest.approx(values.sum())
    assert (found.maps[SMOOTH][:8, 2:, 1:9] > 0).all()
