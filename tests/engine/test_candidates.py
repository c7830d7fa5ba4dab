"""What the check of a space finds, without Ray."""

import dataclasses

import pytest

from voxfleet import storage
from voxfleet.cli import parse
from voxfleet.engine import candidates
from voxfleet.engine.candidates import Candidates, Memory, say_listed
from voxfleet.errors import UserError
from voxfleet.train.memory import Need


@pytest.fixture
def check(latents, tmp_path):
    """The check of a space, given as on the command line."""
    folder, manifest = latents(shape=(2, 4, 4, 4))
    model = ["--model.in_channels", "2", "--model.input_size", "[4,4,4]", "--model.hidden_size", "24"]
    places = ["--name", "q", "--output", str(tmp_path / "out"), "--data", folder, "--model.num_heads", "2"]

    def make(space, *more):
        config = parse("tune", [*places, *model, "--search.trials", "3", "--search.space", space, *more])
        return Candidates(config, manifest)

    return make


def test_each_combination_is_kept_removed_with_its_reason_or_merged_with_its_twin(check, capsys):
    space = "{model.num_heads: {choice: [2, 5]}, model.window_size: {choice: [[1,1,1], [4,4,4], null]}}"
    found = check(space, "--model.patch_size", "[2,2,2]").listed()
    assert [keys["model.window_size"] for keys in found["kept"]] == [[1, 1, 1], [4, 4, 4]]
    assert found["merged"] == [
        {
            "keys": {"model.num_heads": 2, "model.window_size": None},
            "same": {"model.num_heads": 2, "model.window_size": [4, 4, 4]},
        }
    ]
    assert {entry["keys"]["model.num_heads"] for entry in found["removed"]} == {5}
    assert len(found["removed"]) == 3
    assert "divide" in found["removed"][0]["why"]
    say_listed(found)
    shown = capsys.readouterr().err
    assert "2 networks to try; of the combinations 3 are impossible, 1 are the same as others" in shown
    assert "the same: model.num_heads 2, model.window_size null as model.num_heads 2" in shown
    say_listed({**found, "removed": found["removed"] * 5})
    assert "tune: and 3 more, in space.json" in capsys.readouterr().err


def test_combinations_that_differ_in_anything_but_the_window_are_not_the_same(check):
    space = "{optim.lr: {choice: [0.1, 0.2]}, augment.noise: {choice: [0.0, 0.1]}, trainer.batch_size: {grid: [4, 8]}}"
    assert len(check(space).listed()["kept"]) == 8


def test_a_batch_of_fewer_samples_than_workers_is_impossible(check):
    found = check("{trainer.batch_size: {choice: [2, 3, 4]}}", "--resources.workers", "3").listed()
    assert found["kept"] == [{"trainer.batch_size": size} for size in (3, 4)]
    assert "trainer.batch_size is 2, fewer than workers" in found["removed"][0]["why"]


@pytest.mark.parametrize(
    "space",
    ["{model.hidden_size: {choice: [25, 27]}}", "{model.hidden_size: {choice: [25, 27]}, optim.lr: {uniform: [0, 1]}}"],
)
def test_a_space_of_which_nothing_can_be_trained_is_refused_though_it_cannot_be_listed(check, space):
    with pytest.raises(UserError, match=r"nothing in search.space can be trained: \d+ combinations .* divide"):
        check(space).listed()


def test_looking_for_one_ends_in_time(check, monkeypatch):
    monkeypatch.setattr(candidates, "_LOOK_S", 0)
    with pytest.raises(UserError, match="32 combinations are impossible"):
        check("{model.hidden_size: {choice: [25, 27]}, optim.lr: {uniform: [0, 1]}}").listed()


def test_of_an_endless_space_one_that_can_be_trained_is_enough(check):
    endless = check("{model.hidden_size: {integer: [25, 5000]}}")
    assert endless.listed() == {"kept": [], "removed": [], "merged": []}


def test_memory_removes_what_a_worker_has_no_room_for(check):
    space = "{trainer.batch_size: {choice: [4, 400]}}"
    wide = check(space, "--resources.workers", "2", "--trainer.accumulate", "3", "--gradient_checkpointing", "true")
    small, large = (wide.need(wide.config.trial({"trainer.batch_size": size})) for size in (4, 400))
    assert (small.part, large.part) == (1, 67)
    assert large.checkpointing
    wide.memory = Memory(limit=1.1 * large.bytes() / 0.9, factor=1.0)
    assert len(wide.listed()["kept"]) == 2
    wide.memory = dataclasses.replace(wide.memory, factor=1.2)
    found = wide.listed()
    assert found["kept"] == [{"trainer.batch_size": 4}]
    assert "needs about" in found["removed"][0]["why"]
    wide.memory = Memory(limit=1.0, factor=1.0)
    with pytest.raises(UserError, match="a worker has 1e-09 GB"):
        wide.listed()


def test_memory_is_measured_once_and_again_with_other_resources(check, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "gpus_per_worker", lambda resources: resources.gpus_per_worker or 0.0)
    measured = []

    def measure(self, gpus):
        measured.append(gpus)
        return {"limit": 100.0 * (len(measured)), "factor": 2.0}

    monkeypatch.setattr(Candidates, "_measured", measure)
    for more, limit in (
        ([], 100.0),
        ([], 100.0),
        (["--resources.gpus_per_worker", "0.5"], 200.0),
        (["--resources.gpus_per_worker", "0.5", "--resources.wait_s", "3"], 200.0),
        (["--resources.cpus_per_worker", "4"], 300.0),
    ):
        found = check("{model.depth: {choice: [1, 2]}}", *more)
        found.measure(str(tmp_path))
        assert found.memory == Memory(limit, 2.0)
    assert measured == [0.0, 0.5, 0.0]
    assert storage.read_json(str(tmp_path / "memory.json"))["of"] == {"cpus": 4, "gpus": 0.0}


@pytest.mark.parametrize(("gpus", "memory"), [(0.0, 7.0), (0.5, None)])
def test_the_step_is_of_what_can_be_trained_where_a_worker_would_be(check, monkeypatch, gpus, memory):
    asked = []

    class Task:
        def options(self, **resources):
            asked.append(resources)
            return self

        def remote(self, *arguments):
            asked.append(arguments)
            return 9.0, 2.0

    monkeypatch.setattr(candidates, "_measure", Task())
    monkeypatch.setattr(candidates, "_node_memory", lambda resources: 7.0)
    monkeypatch.setattr(candidates.ray, "get", lambda found: found)
    found = check(
        "{model.hidden_size: {choice: [48, 25, 24]}}", "--model.depth", "2", "--resources.cpus_per_worker", "3"
    )
    assert found._measured(gpus) == {"limit": 9.0, "factor": 2.0}
    resources, (needs, _, *where) = asked
    assert resources == {"num_cpus": 3, "num_gpus": gpus}
    assert [need.model.hidden_size for need in needs] == [24, 48]  # the smallest first
    assert where == [gpus, memory]


def test_what_is_measured_is_scaled_by_what_a_middling_network_took_in_a_real_step(monkeypatch):
    taken = []

    def measured_bytes(need, precision, device):
        taken.append(need)
        return 3 * need.bytes()

    monkeypatch.setattr(candidates, "measured_bytes", measured_bytes)
    model = parse("model-summary", ["--model.hidden_size", "24", "--model.num_heads", "2"]).model
    needs = [Need(dataclasses.replace(model, depth=depth), 4, checkpointing=False) for depth in (1, 2, 3, 30)]
    monkeypatch.setattr(candidates, "_ENOUGH", 100 * (needs[2].bytes() - dataclasses.replace(needs[2], part=3).bytes()))
    limit = 2.1 * dataclasses.replace(needs[2], part=100).bytes()
    measure = candidates._measure._function
    assert measure(needs, "float32", 0.0, limit) == (limit, 3.0)
    (need,) = taken
    assert need.model.depth == 2  # of the three that surely fit
    assert 100 < need.part < 200  # however few a step is to have: with those, what torch itself takes would show
    assert measure(needs, "float32", 0.0, 1.0) == (1.0, 1.0)


def test_a_worker_on_cpus_has_its_share_of_the_smallest_node_that_holds_it(check, monkeypatch):
    nodes = [({"CPU": 2, "memory": 2.0}, True), ({"CPU": 8, "memory": 24.0}, True), ({"CPU": 8, "memory": 8.0}, False)]
    nodes = [{"Resources": resources, "Alive": alive} for resources, alive in nodes] + [
        {"Resources": {"memory": 1.0}, "Alive": True}
    ]
    monkeypatch.setattr(candidates.ray, "nodes", lambda: nodes)
    shares = [
        candidates._node_memory(
            check("{model.depth: {choice: [1]}}", "--resources.cpus_per_worker", cpus).config.resources
        )
        for cpus in ("1", "4")
    ]
    assert shares == [1.0, 12.0]  # the smallest node does not hold four
