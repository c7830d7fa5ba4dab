"""The parts of a campaign by themselves: commits, its crew, what is verified, drawn, decoded, and left in the end."""

import contextlib
from collections import Counter
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from voxfleet.config.generation import GenerateConfig, PoolsConfig
from voxfleet.config.resources import ResourcesConfig
from voxfleet.data.campaign import SCHEMA, Plan, Queue, Sample, Unit
from voxfleet.data.known import Known
from voxfleet.data.shards import read_shard, tensors
from voxfleet.data.synthetic import SaveConfig, sidecar_file
from voxfleet.diffusion.samplers import SamplerConfig
from voxfleet.engine import generate, makers
from voxfleet.engine.campaign import Commits, Crew, Tally, carry_out
from voxfleet.engine.console import Quiet
from voxfleet.engine.dataset import _once, _shards_once, _sorted
from voxfleet.engine.makers import Decoder, Drawer, Making
from voxfleet.engine.pipeline import Parcel, Spent
from voxfleet.engine.units import Ledger
from voxfleet.engine.verify import forget_damaged
from voxfleet.errors import GateError, UserError
from voxfleet.storage import write_bytes

CLASSES = ("HC", "TLE")


def sample(index, attempt=0, label=0):
    return Sample(label, CLASSES[label], index, 0, attempt)


def row(of, reason="", **more):
    what = {"sample_id": of.sample_id, "class": of.class_name, "index": of.index, "attempt": of.attempt}
    return {**what, "reason": reason, **more}


def latents(*numbers):
    """(len(numbers), 2, 1, 1, 1), the first channel of each its number."""
    return np.stack([np.full((2, 1, 1, 1), number, np.float32) for number in numbers])


def a_unit(number=0):
    """Two batches, of which one sample is rejected."""
    first, second, third = (sample(10 * number + index) for index in range(3))
    rows = [row(first, "dark"), row(second), row(third)]
    made = [latents(10 * number, 10 * number + 1), latents(10 * number + 2)]
    return Unit(f"{first.sample_id}.0", 0, rows, made)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "ledger"))


@pytest.fixture
def commits(tmp_path, ledger):
    with Commits(str(tmp_path), CLASSES, ledger, latents=True) as commits:
        yield commits


def test_a_shard_holds_the_latents_of_what_is_kept_and_its_rows_name_it(tmp_path, ledger, commits):
    commits.begin(a_unit())
    commits.finish()
    (unit,) = ledger.done()
    rejected, *kept = ledger.rows(unit)
    assert (rejected["latents"], rejected["latents_sha256"]) == (None, None)
    assert {entry["latents"] for entry in kept} == {f"latents/part-{unit}.parquet"}
    shard = read_shard(str(tmp_path / kept[0]["latents"]))
    assert shard["source"].to_pylist() == ["syn-HC-0000001", "syn-HC-0000002"]
    np.testing.assert_array_equal(tensors(shard, "mu"), latents(1, 2))


def test_a_unit_is_the_same_whichever_batch_is_decided_first_and_leaves_others_as_they_are(tmp_path, ledger, commits):
    commits.begin(a_unit())
    commits.finish()
    (first,), before = ledger.done(), ledger.table(SCHEMA)
    unit = a_unit()
    unit.rows, unit.latents = unit.rows[2:] + unit.rows[:2], unit.latents[::-1]
    commits.begin(unit)
    commits.finish()
    assert ledger.done() == {first}
    assert ledger.table(SCHEMA) == before
    unit = a_unit()
    unit.rows, unit.latents = unit.rows[:2], unit.latents[:1]  # begins with the same sample
    commits.begin(unit)
    commits.finish()
    assert sorted(ledger.table(SCHEMA)["index"].to_pylist()) == [0, 0, 1, 1, 2]


def test_shards_in_which_two_runs_put_the_same_samples_are_written_again(tmp_path, ledger, commits):
    one, other = a_unit(), a_unit()
    other.rows, other.latents = [row(sample(2)), row(sample(3))], [latents(2, 3)]
    for unit in (one, other):
        commits.begin(unit)
    commits.finish()
    rows = ledger.table(SCHEMA)
    every = _sorted(rows.filter(pc.equal(rows["reason"], "")), CLASSES)
    assert every["index"].to_pylist() == [1, 2, 2, 3]
    kept = _shards_once(str(tmp_path), every, _once(every)).to_pylist()
    assert [entry["index"] for entry in kept] == [1, 2, 3]
    for file in {entry["latents"] for entry in kept}:
        mine = [entry for entry in kept if entry["latents"] == file]
        shard = read_shard(str(tmp_path / file))
        assert shard["source"].to_pylist() == [entry["sample_id"] for entry in mine]
        np.testing.assert_array_equal(tensors(shard, "mu"), latents(*(entry["index"] for entry in mine)))
        assert {entry["latents_sha256"] for entry in mine} == {sha256((tmp_path / file).read_bytes()).hexdigest()}


def test_rows_whose_latents_cannot_be_written_are_not_committed(tmp_path, ledger, commits):
    (tmp_path / "latents").write_text("no folder")
    commits.begin(a_unit())
    with pytest.raises(UserError, match="cannot write"):
        commits.finish()
    assert ledger.done() == set()


def test_a_commit_that_fails_is_told_as_soon_as_others_wait_for_it(tmp_path, commits):
    (tmp_path / "latents").write_text("no folder")
    begun = Counter()

    def begin_many():
        for number in range(100):
            commits.begin(a_unit(number))
            begun[number] += 1

    with pytest.raises(UserError, match="cannot write"):
        begin_many()
    assert len(begun) < 10


def test_all_that_was_begun_is_there_at_the_end(ledger, commits):
    for number in range(7):
        commits.begin(a_unit(number))
    commits.finish()
    assert len(ledger.done()) == 7


def config_of(workers=5, decoders=0, writers=None, volumes=True):
    return GenerateConfig(
        output="out",
        model="model",
        autoencoder="vae",
        save=SaveConfig(volumes=volumes, latents=not volumes),
        pools=PoolsConfig(decoders=decoders, writers=writers),
        resources=ResourcesConfig(workers=workers, cpus_per_worker=2),
    )


@pytest.mark.parametrize(
    ("keys", "batches", "workers", "decoders", "writers", "most"),
    [
        ({}, 100, 5, 0, 1, 6),
        ({"decoders": 2}, 100, 5, 2, 1, 2),
        ({"decoders": 4}, 3, 3, 3, 1, 4),
        ({"decoders": 4, "volumes": False}, 2, 2, 0, 1, 12),
        ({"writers": 3}, 100, 5, 0, 3, 3),
        ({"workers": 50}, 100, 50, 0, 1, 1),
    ],
)
def test_a_crew_has_no_more_hands_than_are_of_use(monkeypatch, keys, batches, workers, decoders, writers, most):
    monkeypatch.setattr("voxfleet.engine.campaign.free_cpus", lambda: 16.0)
    crew = Crew.of(config_of(**keys), None, None, batches)
    assert (crew.workers, crew.decoders, crew.writers, crew.most_writers) == (workers, decoders, writers, most)


@pytest.mark.parametrize(
    ("decoders", "write_s", "writers"),
    [(0, 4.0, 5), (0, 400.0, 8), (0, 0.1, 2), (1, 4.0, 3)],  # as measured; all there are; those it has; by the slowest
)
def test_writers_keep_up_with_the_makers(decoders, write_s, writers):
    crew = Crew(config_of(), None, None, workers=4, decoders=decoders, writers=2, most_writers=8)
    spent = {name: Spent(steady=10, steady_s=10 * s) for name, s in (("draw and decode", 4.0), ("write", write_s))}
    spent |= {"draw": Spent(steady=10, steady_s=10.0), "decode": Spent(steady=10, steady_s=20.0)}
    assert crew.writers_for(spent) == writers


class FakePipeline:
    """Makes each batch at once; every third sample is rejected once."""

    def __init__(self):
        self.spent = {"draw": Spent(), "write": Spent()}
        self.grown, self.sizes_at = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def grow(self, name, workers):
        self.grown.append((name, workers))
        self.sizes_at.append([spent.steady for spent in self.spent.values()])

    def run(self, source):
        while (batch := source()) is not None:
            for spent in self.spent.values():
                spent.add(1.0, 1.0, is_first=spent.calls == 0)
            rows = [row(s, "dark is 0" if s.index % 3 == 0 and not s.attempt else "", bytes=10) for s in batch]
            yield Parcel(batch, {"latents": latents(*(s.index for s in batch))}, result=rows)


def carried_out(commits, **more):
    pipeline = FakePipeline()
    crew = SimpleNamespace(writers=1, pipeline=lambda: pipeline, writers_for=lambda spent: 6)
    plan = Plan(CLASSES, 0, (np.zeros(12, bool), np.zeros(0, bool)), (np.zeros(12, int), np.zeros(0, int)))
    queue = Queue(plan.missing(2, 3), 2, 4, 3)
    return pipeline, carry_out(crew, queue, commits, Quiet("generate", 12, "samples"), **more)


def test_a_campaign_sizes_its_writers_once_and_commits_every_attempt(ledger, commits):
    pipeline, tally = carried_out(commits)
    assert (pipeline.grown, pipeline.sizes_at, tally.writers) == ([("write", 6)], [[3, 3]], 6)
    assert (tally.kept, tally.rejected, tally.size) == (12, {"dark": 4}, 12 * (10 + 8))
    attempts = ledger.table(SCHEMA).select(["index", "attempt", "reason"]).to_pylist()
    kept = [entry["index"] for entry in attempts if not entry["reason"]]
    assert sorted(kept) == list(range(12))
    assert sorted(entry["index"] for entry in attempts if entry["reason"]) == [0, 3, 6, 9]


def test_so_many_batches_are_made_and_nothing_is_kept_without_commits(tmp_path):
    pipeline, tally = carried_out(None, most_batches=3)
    assert pipeline.spent["draw"].calls == 3
    assert (tally.kept, tally.rejected.total()) == (4, 2)
    assert list(tmp_path.iterdir()) == []


def committed(folder, ledger, name, samples, shard):
    """Commit samples with their images and sidecars, and a shard, if it is named; the rows."""
    rows = []
    part = {"latents": shard, "latents_sha256": write_bytes(f"{folder}/{shard}", shard.encode())} if shard else {}
    for of in samples:
        file = f"{of.subject_id}.nii.gz"
        marks = {
            "sha256": write_bytes(f"{folder}/{file}", file.encode()),
            "sidecar_sha256": write_bytes(f"{folder}/{sidecar_file(file)}", b"{}"),
        }
        rows.append(row(of, file=file, **marks, **part))
    ledger.commit(name, [*rows, row(sample(100 + samples[0].index), "dark")], SCHEMA)
    return rows


def indices(ledger):
    return sorted(ledger.table(SCHEMA)["index"].to_pylist())


@pytest.fixture
def finished(tmp_path, ledger, ray_session):
    """A campaign of four samples, two of them in each unit; the folder."""
    write_bytes(f"{tmp_path}/manifest.parquet", b"")
    committed(tmp_path, ledger, "a", [sample(0), sample(1)], "latents/part-a.parquet")
    committed(tmp_path, ledger, "b", [sample(2), sample(3)], "latents/part-b.parquet")
    return tmp_path


@pytest.mark.parametrize("what", ["sub-synHC0000000.nii.gz", "sub-synHC0000000.json", "latents/part-a.parquet"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_what_is_damaged_is_forgotten_with_its_shard(finished, ledger, what, is_missing):
    if is_missing:
        (finished / what).unlink()
    else:
        (finished / what).write_bytes(b"damaged")
    forget_damaged(str(finished), ledger)
    assert indices(ledger) == [2, 3, 100, 102]
    assert [path.name for path in (finished / "latents").iterdir()] == ["part-b.parquet"]
    assert not (finished / "manifest.parquet").exists()


def test_what_is_whole_stays_as_it_is(finished, ledger):
    forget_damaged(str(finished), ledger)
    assert indices(ledger) == [0, 1, 2, 3, 100, 102]
    assert (finished / "manifest.parquet").exists()


@pytest.mark.usefixtures("ray_session")
def test_without_shards_only_what_is_damaged_is_forgotten(tmp_path, ledger):
    first, _ = committed(tmp_path, ledger, "a", [sample(0), sample(1)], None)
    (tmp_path / first["file"]).unlink()
    forget_damaged(str(tmp_path), ledger)
    assert indices(ledger) == [1, 100]


class FakeModel:
    """Draws latents (B, 2, 1, 1, 1) of which the first channel is the index of the sample, the second its place."""

    mean, std, precision = (5.0, 1.0), (100.0, 1.0), "float32"

    def __init__(self, *bad):
        self.bad = bad

    def sample(self, labels, seeds, sampler):
        index = {sample(number, label=label).seed: number for number in range(100) for label in (0, 1)}
        drawn = [[np.nan if index[seed] in self.bad else index[seed], place] for place, seed in enumerate(seeds)]
        assert all(sample(index[seed], label=label).seed == seed for label, seed in zip(labels, seeds, strict=True))
        return torch.tensor(drawn, dtype=torch.float32).reshape(-1, 2, 1, 1, 1)


class FakeAutoencoder:
    """Volumes (B, 1, 2, 3, 4) of which the first voxel along all axes is the first number of the latent."""

    def __init__(self):
        self.shapes = set()

    def decode(self, part):
        self.shapes.add(tuple(part.shape))
        return part[:, :1] + torch.arange(24.0).reshape(2, 3, 4) / 100


@pytest.fixture
def making(monkeypatch):
    """How fakes make samples: in batches of 5, decoded by 2."""
    monkeypatch.setattr(makers, "load_model", lambda *_, **__: FakeModel())
    return Making(
        model="",
        autoencoder="",
        sampler=SamplerConfig(),
        precision="float32",
        mode="eager",
        decode_precision="float32",
        batch_size=5,
        decode_batch_size=2,
        threads=torch.get_num_threads(),
        device="cpu",
    )


BATCH = [sample(9), sample(2, label=1), sample(13)]  # in the places 4, 2 and 3


def test_a_sample_is_drawn_in_its_place_whatever_its_batch(making):
    found = Drawer(making, None)(BATCH)
    np.testing.assert_array_equal(found["latents"][:, :, 0, 0, 0], [[9, 4], [2, 2], [13, 3]])
    assert found["made"]["batch_size"] == 5


def test_what_draws_and_decodes_uses_kernels_that_give_the_same_bits(making, monkeypatch):
    monkeypatch.setattr(makers, "load_autoencoder", lambda *_, **__: FakeAutoencoder())
    for made in (lambda: Drawer(making, None), lambda: Decoder(making)):
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
        made()
        assert torch.backends.cudnn.deterministic


def test_a_latent_that_is_not_finite_is_told(making, monkeypatch):
    monkeypatch.setattr(makers, "load_model", lambda *_, **__: FakeModel(2))
    checks = Drawer(making, None)(BATCH)["made"]["checks"]
    assert checks == [{"finite": 1.0}, {"finite": 0.0}, {"finite": 1.0}]


def test_novelty_is_measured_in_standardised_latents(making):
    standardised = [[(index - 5) / 100, place - 1] for index, place in ((9, 4), (2, 2), (70, 0))]
    known = Known(np.array(standardised, dtype=np.float32), np.arange(3))
    checks = Drawer(making, known)(BATCH)["made"]["checks"]
    assert [check["novelty"] for check in checks[:2]] == pytest.approx([0, 0], abs=1e-6)
    assert checks[2]["novelty"] > 0.1


def test_batches_are_decoded_in_one_shape_and_each_volume_belongs_to_its_sample(making, monkeypatch):
    autoencoder = FakeAutoencoder()
    monkeypatch.setattr(makers, "load_autoencoder", lambda *_, **__: autoencoder)
    volumes = Decoder(making)(BATCH, latents(9, 2, 13))["volumes"]
    assert autoencoder.shapes == {(2, 2, 1, 1, 1)}
    assert volumes.shape == (3, 4, 3, 2)
    np.testing.assert_array_equal(volumes[:, 0, 0, 0], [9, 2, 13])
    np.testing.assert_allclose(volumes[1, 3, 2, 1], 2.23)


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    ledger = Ledger(str(tmp_path / ".voxfleet" / "ledger"))
    committed(tmp_path, ledger, "a", [sample(0)], "latents/part-a.parquet")
    stays = {path for path in tmp_path.rglob("*") if path.is_file()} | {tmp_path / "latents" / "dataset.json"}
    write_bytes(f"{tmp_path}/latents/dataset.json", b"{}")
    left = ("latents/part-b.parquet", "latents/.part-c.parquet.1.tmp", ".voxfleet/unfinished/.x.nii.gz.1.tmp", ".m.tmp")
    for name in left:
        write_bytes(f"{tmp_path}/{name}", b"")
    write_bytes(f"{tmp_path}/latents/part-a-again.parquet", b"")
    monkeypatch.setattr(
        generate, "read_manifest", lambda *_: SimpleNamespace(shards=[{"file": "part-a-again.parquet"}])
    )
    stays.add(tmp_path / "latents" / "part-a-again.parquet")
    generate._remove_unfinished(str(tmp_path), ledger)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == stays


@pytest.mark.parametrize(("attempts", "is_complete"), [(7, True), (8, False)])
def test_a_campaign_of_which_a_sample_was_given_up_is_not_complete(attempts, is_complete):
    plan = Plan(CLASSES, 0, (np.array([True, False]), np.array([True])), (np.array([0, attempts]), np.array([2])))
    told = contextlib.nullcontext() if is_complete else pytest.raises(GateError, match=r"1 of 3 .*first syn-HC-0000001")
    with told:
        generate._check_complete(config_of(), plan, Tally())
