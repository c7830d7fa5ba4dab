"""Trials side by side: how many, and what becomes of those that fail. Without Ray: what trains is made up."""

import dataclasses
import threading
import time

import pytest
from deadlines import extend

from voxfleet import storage
from voxfleet.cli import parse
from voxfleet.engine import trials, tune
from voxfleet.engine.output import Output
from voxfleet.engine.training import Trained
from voxfleet.engine.worker import WorkerError
from voxfleet.errors import UnfitError, UserError, WorkersLostError, WorkMissingError
from voxfleet.search.space import canonical
from voxfleet.search.study import SearchConfig, Study

SCORED = (0.5, {"fit_s": 2.0})
_LONG_S = extend(120)  # never waited for


@pytest.fixture
def killed(monkeypatch):
    """The classes of actors that were killed."""
    found = []
    monkeypatch.setattr(trials, "kill_actors", found.append)
    return found


@pytest.fixture
def study(tmp_path, killed):
    """Six trials, each of one stage."""
    search = SearchConfig(space={"model.depth": {"integer": [1, 6]}}, searcher="grid", scheduler="none")
    return Study(str(tmp_path / "record"), search, (9,), canonical)


class Running:
    """Stands in for training: waits until ``wanted`` run at once, as they should, and counts how many do."""

    def __init__(self, wanted):
        self.wanted, self.now, self.most, self.begun, self.changed = wanted, 0, 0, [], threading.Condition()

    def __call__(self, trial):
        with self.changed:
            self.now, self.begun = self.now + 1, [*self.begun, trial.number]
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.wanted, timeout=_LONG_S)
        time.sleep(0.05)
        with self.changed:
            self.now -= 1
        return SCORED


@pytest.mark.parametrize("slots", [0, 1, 4])
def test_as_many_run_as_there_is_room_for_and_all_end(study, slots):
    running, ended = Running(max(slots, 1)), []
    trials.conduct(study, lambda: slots, running, ended.append)
    assert running.most == max(slots, 1)
    assert sorted(running.begun) == sorted(trial.number for trial in ended) == [0, 1, 2, 3, 4, 5]
    assert all(trial.scores == {9: 0.5} and trial.seconds == {"fit_s": 2.0} for trial in study.trials)


def test_a_trial_that_ends_is_followed_at_once_though_another_goes_on(study, monkeypatch):
    monkeypatch.setattr(trials, "_LOOK_S", 10 * _LONG_S)
    others, in_time = threading.Event(), []

    def train(trial):
        if trial.number == 0:
            in_time.append(others.wait(_LONG_S))
        elif trial.number == 5:
            others.set()
        return SCORED

    trials.conduct(study, lambda: 2, train, lambda trial: None)
    assert in_time == [True]


def test_room_that_comes_later_is_used(study):
    ended, together = [], threading.Barrier(3)

    def train(trial):
        if trial.number in (2, 3, 4):
            together.wait(_LONG_S)
        return SCORED

    trials.conduct(study, lambda: 3 if len(ended) >= 2 else 1, train, ended.append)
    assert len(ended) == 6


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnfitError("the GPU is out of memory; lower trainer.batch_size"), "the GPU is out of memory"),
        (WorkersLostError("workers were lost (the last time: killed); run it again"), "(the last time: killed)"),
        (WorkerError("Traceback\n  of a compiler\nRuntimeError: no kernel\n"), "RuntimeError: no kernel"),
    ],
)
def test_a_trial_that_cannot_be_trained_is_recorded_and_the_others_go_on(study, killed, error, reason):
    def train(trial):
        if trial.number == 1:
            raise error
        return SCORED

    ended = []
    trials.conduct(study, lambda: 1, train, ended.append)
    assert study.trials[1].reason.endswith(reason)
    assert [bool(trial.scores) for trial in study.trials] == [True, False, True, True, True, True]
    assert [trial.reason for trial in ended].count("") == 5
    assert not killed


@pytest.mark.parametrize("error", [UserError("disk full"), WorkMissingError("Ray is gone"), WorkerError("a bug")])
def test_another_error_and_a_bug_before_any_score_end_the_search_and_the_trials_beside(
    study, killed, monkeypatch, error
):
    leave, left = threading.Event(), []

    def train(trial):
        if trial.number:
            leave.wait(_LONG_S)
            left.append(trial.number)
            raise WorkMissingError("Ray lost the training")
        raise error

    def kill(name):
        killed.append(name)
        if len(killed) > 1:  # at first they are only starting
            leave.set()

    monkeypatch.setattr(trials, "kill_actors", kill)
    with pytest.raises(type(error), match=str(error)):
        trials.conduct(study, lambda: 3, train, lambda trial: None)
    assert killed == [trials.CONTROLLER] * 2
    assert sorted(left) == [1, 2]  # waited for
    assert [trial.is_open for trial in study.trials] == [True] * 3  # nothing else was begun; all are done again


def test_an_interrupt_ends_the_trials_too(study, killed):
    def interrupt(trial):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trials.conduct(study, lambda: 1, lambda trial: SCORED, interrupt)
    assert killed == [trials.CONTROLLER]


@pytest.fixture
def search(tmp_path, latents):
    """A search in ``tmp_path/out/q``, with what its trials train on."""
    folder, manifest = latents(shape=(2, 4, 4, 4))
    model = ["--model.in_channels", "2", "--model.input_size", "[4,4,4]", "--model.hidden_size", "24"]
    places = ["--name", "q", "--output", str(tmp_path / "out"), "--data", folder, "--tracking.uri", "null"]

    def make(*more):
        config = parse("tune", [*places, *model, "--model.num_heads", "2", "--trainer.epochs", "240", *more])
        output = Output("tune", str(tmp_path / "out" / "q"), config, {"data": manifest.digest})
        return trials.Trainer(config, manifest, {}, (3, 9), output)

    return make


@pytest.fixture
def fits(monkeypatch):
    """What fits were asked for; each measures ``measures`` at the step that it ends with."""
    asked, measures = [], {"val_loss": 0.3, "val_error": 0.2}

    def fit(recipe, data, **options):
        asked.append({"recipe": recipe, **options})
        before = [{"step": 4, "val_loss": 9.0, "val_error": 9.0}, {"step": 8, "loss": 1.0}]
        return Trained({"step": 8}, {}, [*before, {"step": 8, **measures}], {"fit_s": 3.0})

    monkeypatch.setattr(trials, "fit", fit)
    return asked, measures


def test_a_trial_is_trained_with_its_keys_to_its_target_at_the_pace_of_the_whole(search, fits, study, tmp_path):
    more = ["--loading.balanced", "true", "--resources.workers", "3", "--package", str(tmp_path / "package")]
    (asked, _), trainer = fits, search("--search.metric", "val_error", "--search.quality_samples", "4", *more)
    trial = dataclasses.replace(study.next(), number=7, keys={"model.depth": 5, "optim.lr": 0.5}, target=3)
    assert trainer(trial) == (0.2, {"fit_s": 3.0, "fits": 1})
    (fit,) = asked
    assert (fit["folder"], fit["name"]) == (str(tmp_path / "out" / "q" / "trials"), "00007")
    assert (fit["recipe"].model.depth, fit["optim"].lr) == (5, 0.5)
    assert fit["trainer"].epochs == 9  # so that the learning rate falls as in a whole trial
    assert (fit["rungs"].epochs, fit["rungs"].until) == ((3, 9), 3)
    assert fit["rungs"].quality.number == 4
    assert fit["balanced"]
    assert fit["resources"] == trainer.config.resources
    assert trainer.recorded_in(trial).parent is trainer.output
    assert trainer.training(trial).package is None  # that of the best is for a training of its own
    assert trainer.training(trial).tracking.flush_s == 0
    job = storage.read_json(str(tmp_path / "out" / "q" / "trials" / "00007" / ".voxfleet" / "job.json"))
    assert (job["job"], job["config"]["model"]["depth"]) == ("train", 5)
    assert search("--search.metric", "val_loss", *more)(trial)[0] == 0.3
    assert asked[1]["rungs"].quality is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_a_failure(search, fits, study, value):
    fits[1]["val_error"] = value
    with pytest.raises(UnfitError, match=r"val_error is (nan|inf) at step 8"):
        search("--search.metric", "val_error")(study.next())


def test_what_trials_could_not_record_is_sent_until_the_store_takes_nothing(search, monkeypatch, tmp_path):
    output, asked = search().output, []
    output.claim()
    for number in range(3):
        (tmp_path / "out" / "q" / "trials" / f"0000{number}").mkdir(parents=True)

    def send(self):
        asked.append(self.folder[-1])
        return self.folder[-1] != "1"

    monkeypatch.setattr(Output, "send_unsent", send)
    trials.send_unsent(output)
    assert asked == ["0", "1"]
    storage.write_json(str(tmp_path / "out" / "q" / "search.json"), {"asked": output.config.search.trials})
    tune.run(output.config)  # a search that is complete
    assert asked == ["0", "1", "q", "0", "1"]


def test_a_distance_from_one_latent_is_refused_before_anything_runs(latents, tmp_path):
    folder, _ = latents(shape=(2, 4, 4, 4), val=1)
    model = ["--model.in_channels", "2", "--model.input_size", "[4,4,4]", "--search.quality_samples", "4"]
    places = ["--name", "q", "--output", str(tmp_path / "out"), "--data", folder]
    with pytest.raises(UserError, match=r"search.quality_samples is 4, but split val .* has one latent"):
        tune.run(parse("tune", [*places, *model]))
    assert not (tmp_path / "out").exists()
