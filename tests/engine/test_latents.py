"""Parts of the latents job: the map from blocks, what decoding measures, and the verdict."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from voxfleet.config.visualisation import LatentsConfig
from voxfleet.data.shards import table_bytes, tensor_table
from voxfleet.engine import latent_pieces
from voxfleet.engine.latent_decoding import Decoded, Task, decoded_by
from voxfleet.engine.latent_map import latent_map, umap_points
from voxfleet.engine.latent_pieces import Pieces, vectors_of
from voxfleet.engine.latent_verdict import judge
from voxfleet.metrics.channels import ChannelSums
from voxfleet.models.vae import LOGVAR

CLASSES = ("HC", "TLE")


def pieces_of(folder, vectors, labels, splits, *, synthetic=False, label_of=(0, 1)):
    """As if each two latents were a shard."""
    files = []
    for start in range(0, len(vectors), 2):
        rows = slice(start, start + 2)
        columns = {"label": labels[rows].tolist(), "split": splits[rows].tolist()}
        path = folder / f"{'synthetic' if synthetic else 'real'}-{start:03d}.parquet"
        path.write_bytes(table_bytes(tensor_table(columns, {"vector": vectors[rows]})))
        files.append(str(path))
    return Pieces(None, tuple(files), label_of, synthetic)


@pytest.mark.parametrize("block", [1, 3, 512])
def test_the_map_is_that_of_the_whole_training_split_for_blocks_of_any_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr(latent_pieces, "_BLOCK", block)
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(20, 30)) * np.linspace(3, 0.1, 30) + 5).astype(np.float32)
    labels, splits = np.arange(20) % 2, np.array(["train"] * 14 + ["val", "test"] * 3)
    samples = rng.normal(size=(6, 30)).astype(np.float32)
    made = pieces_of(
        tmp_path, samples, np.array([0] * 5 + [1]), np.array(["train"] * 6), synthetic=True, label_of=(1, 0)
    )
    found = latent_map({"real": pieces_of(tmp_path, vectors, labels, splits), "synthetic": made}, CLASSES)

    train = vectors[:14].astype(np.float64)
    _, lengths, axes = np.linalg.svd(train - train.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.explained, (lengths**2 / (lengths**2).sum())[:13], rtol=1e-6)
    everyone = np.concatenate([vectors, samples]) - train.mean(axis=0)
    np.testing.assert_allclose(np.abs(found.coordinates[:, :3]), np.abs(everyone @ axes[:3].T), atol=1e-4)
    assert found.splits.tolist() == [*splits.tolist(), *["synthetic"] * 6]
    assert found.labels.tolist() == [*labels.tolist(), *[1] * 5, 0]  # their classes are the other way round
    assert {group.name: group.n for group in found.groups}["TLE, synthetic, from training"] == 5

    of_class = found.coordinates[:14][labels[:14] == 1]
    nearest = np.linalg.norm(of_class - of_class.mean(axis=0), axis=1).argmin()
    assert found.typical("train", 1) == 2 * nearest + 1
    assert found.typical("synthetic", 0) == 25
    assert found.typical("nothing", 0) is None


def test_mirrored_latents_span_the_map_but_are_no_people(tmp_path):
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(24, 5)).astype(np.float32), np.arange(24) % 2
    splits = np.array(["train"] * 8 + ["mirrored"] * 8 + ["val"] * 8)
    found = latent_map({"real": pieces_of(tmp_path, vectors, labels, splits)}, CLASSES)
    seen = vectors[:16].astype(np.float64)
    lengths = np.linalg.svd(seen - seen.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(found.explained, lengths**2 / (lengths**2).sum(), rtol=1e-6)
    people = latent_map(
        {"real": pieces_of(tmp_path, *(x[splits != "mirrored"] for x in (vectors, labels, splits)))}, CLASSES
    )
    assert found.groups == people.groups
    assert found.typical("train", 0) in range(8)


def test_large_latents_are_pooled_and_standardised():
    mu = np.random.default_rng(0).normal(3, 2, (2, 2, 20, 20, 20)).astype(np.float32)
    small, large = vectors_of(mu[:, :, :4, :4, :4], [3, 3], [2, 2]), vectors_of(mu, [3, 3], [2, 2])
    np.testing.assert_allclose(small, ((mu[:, :, :4, :4, :4] - 3) / 2).reshape(2, -1), rtol=1e-6)
    assert large.shape == (2, 2000)
    assert large[0, 0] == pytest.approx(((mu[0, 0, :2, :2, :2] - 3) / 2).mean(), rel=1e-5)


def config(**more):
    return LatentsConfig(output="out", data="data", points=3, **more)


def first_channel():
    """An autoencoder whose volumes are the first channel of its latents."""
    return SimpleNamespace(model=SimpleNamespace(decode=lambda z: z[:, :1]), dtype=torch.float32)


def test_decoding_tells_range_noise_and_the_way_between_ends():
    mu = np.full((3, 2, 2, 2, 2), 0.5, np.float32)
    mu[0, 0, 0, 0] = 1.5, 1.04
    mu[1, 0, 1, 1] = -0.2, -0.04
    logvar = np.full_like(mu, 2 * np.log(0.01))
    ends = np.stack([np.full((2, 2, 2, 2), 0.2), np.full((2, 2, 2, 2), 0.6)]).astype(np.float32)
    task = Task(mu, logvar, {"way": ends}, [0.0, 0.0], [1.0, 1.0])
    found = decoded_by(first_channel(), config(batch_size=2), task, "cpu")
    assert (found.low, found.high) == (pytest.approx(-0.2), 1.5)
    assert found.outside == pytest.approx(2 / 24)  # of three volumes of eight voxels
    np.testing.assert_array_equal(found.means, mu[:, 0].clip(0, 1))
    difference = found.draws[2] - mu[2, 0]
    assert 0.003 < np.abs(difference).mean() < 0.02
    assert found.psnr[2] == pytest.approx(-10 * np.log10((difference**2).mean()), rel=1e-4)
    np.testing.assert_allclose(found.strips["way"][:, 0, 0, 0], [0.2, 0.4, 0.6], atol=1e-6)
    again = decoded_by(first_channel(), config(batch_size=8), task, "cpu")
    np.testing.assert_array_equal(again.draws, found.draws)
    assert not np.array_equal(decoded_by(first_channel(), config(seed=7), task, "cpu").draws, found.draws)


def sums(sigma=(0.1, 0.1), *, copied=False, shift=0.0, logvar=None):
    mu = np.random.default_rng(0).normal(size=(20, 2, 4, 4, 4)) + shift
    if copied:
        mu[:, 1] = mu[:, 0] + 0.01 * mu[:, 1]
    noise = np.broadcast_to(2 * np.log(np.array(sigma))[:, None, None, None], mu.shape)
    draw_std = np.sqrt(mu.var(axis=(0, 2, 3, 4)) + np.square(sigma))
    mean = (mu - shift).mean(axis=(0, 2, 3, 4))
    return ChannelSums.of(mu, noise if logvar is None else np.full_like(mu, logvar), mean, draw_std)


def failed(*given, decoded=None):
    checks = judge(dict(zip(("real", "synthetic"), given, strict=False)), [1.0, 1.0], decoded)
    return [check.name for check in checks if check.passed is False]


def test_each_line_fails_for_what_it_is_there_for_and_for_nothing_else():
    assert failed(sums(), sums()) == []
    assert failed(sums(shift=0.02)) == ["training latents, standardised: mean"]
    assert failed(sums(sigma=(0.1, 5.0))) == ["unused channels (noise above 90 %)"]
    assert failed(sums(copied=True)) == ["strongest correlation of two channels"]
    assert failed(sums(), sums(shift=0.5)) == ["synthetic latents, standardised as the training's: mean"]
    assert failed(sums(), sums(logvar=1.0)) == ["synthetic latents, standardised as the training's: sd"]
    volume = np.zeros((1, 2, 2, 2))
    fine = {"means": volume, "draws": volume, "psnr": np.array([40.0]), "low": 0.0, "high": 1.0, "strips": {}}
    assert failed(sums(), decoded=Decoded(**fine, outside=0.001)) == []
    assert "voxels beyond [0, 1]" in failed(sums(), decoded=Decoded(**fine, outside=0.2))[0]
    (line,) = failed(sums(), decoded=Decoded(**{**fine, "psnr": np.array([40.0, 20.0])}, outside=0.0))
    assert line.startswith("PSNR")


def test_latents_without_a_width_say_nothing_of_noise():
    checks = {check.name: check for check in judge({"real": sums(sigma=(1e-9,) * 2, logvar=LOGVAR[0])}, [1, 1], None)}
    for name in ("share of noise in the variance of a draw", "unused channels (noise above 90 %)"):
        assert checks[name].value.startswith("left out")
        assert checks[name].passed is None


def test_umap_keeps_groups_together():
    pytest.importorskip("umap")
    x = np.random.default_rng(0).normal(size=(60, 5)) + 50 * (np.arange(60) % 2)[:, None]
    points = umap_points(x, seed=3)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    same = np.arange(60)[:, None] % 2 == np.arange(60) % 2
    assert apart[same].max() < apart[~same].min()
    np.testing.assert_array_equal(umap_points(x, seed=3), points)
