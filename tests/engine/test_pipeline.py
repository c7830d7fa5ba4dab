"""Pipelines of actors: every batch once, whoever dies; stages side by side; nothing piles up."""

import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from deadlines import extend
from ray import cloudpickle
from ray.exceptions import ObjectLostError, RayActorError

from voxfleet.engine import pipeline as engine
from voxfleet.engine.pipeline import Pipeline, Stage, _Pool
from voxfleet.errors import UserError, WorkMissingError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
pytestmark = pytest.mark.usefixtures("ray_session")
_DEADLINE_S = extend(120)


class Double:
    """Makes an array of twice the number; leaves its process's id; dies at batches that are named, ten times each."""

    def __init__(self, folder, deadly=()):
        self._folder, self._deadly = Path(folder), deadly

    def __call__(self, number):
        (self._folder / f"double-{os.getpid()}").touch()
        if number in self._deadly and len(list(self._folder.glob(f"died-{number}-*"))) < 10:
            (self._folder / f"died-{number}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise UserError(f"{number} is negative; give 0 or more")
        return {"array": np.full(1000, 2 * number), "half": number / 2}


class Sum:
    """Adds up what it is given; waits while a file says so."""

    def __init__(self, folder):
        self._folder = Path(folder)

    def __call__(self, number, array):
        (self._folder / f"sum-{os.getpid()}").touch()
        if (lost := self._folder / f"lose-{number}").exists():
            lost.unlink()
            raise ObjectLostError("0" * 56, None, "")  # as Ray does where the array is gone
        (self._folder / f"begun-{number}").touch()
        deadline = time.monotonic() + _DEADLINE_S
        while (self._folder / "wait").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return number, int(array[0])


def stages(folder, *, doubles=1, sums=1, deadly=()):
    gives = ("array", "half")
    return [
        Stage(name="double", kind=Double, arguments=(str(folder), deadly), gives=gives, workers=doubles, cpus=0),
        Stage(name="sum", kind=Sum, arguments=(str(folder),), takes=("array",), workers=sums, cpus=0),
    ]


def numbers(*values):
    left = iter(values)
    return lambda: next(left, None)


def until(happened):
    deadline = time.monotonic() + _DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_batch_goes_through_all_stages_and_what_is_kept_is_there(tmp_path):
    with Pipeline(stages(tmp_path, doubles=2), keep=("half",)) as pipeline:
        found = {}
        for parcel in pipeline.run(numbers(*range(20))):
            assert set(parcel.data) == {"half"}
            found[parcel.batch] = (*parcel.result, parcel.data["half"])
    assert found == {number: (number, 2 * number, number / 2) for number in range(20)}
    assert pipeline.spent["double"].calls == pipeline.spent["sum"].calls == 20
    assert pipeline.spent["double"].steady == 20 - len(list(tmp_path.glob("double-*")))  # one may come up too late


def test_batches_that_come_up_on_the_way_are_done(tmp_path):
    waiting, done = [1, 2], []

    def source():
        return waiting.pop() if waiting else None

    with Pipeline(stages(tmp_path)) as pipeline:
        for parcel in pipeline.run(source):
            done += [parcel.batch]
            if parcel.batch < 10:
                waiting.append(parcel.batch + 10)
    assert sorted(done) == [1, 2, 11, 12]


def test_workers_that_die_lose_nothing(tmp_path):
    (tmp_path / "wait").touch()
    killed, results = set(), []
    with Pipeline(stages(tmp_path, doubles=2, sums=2)) as pipeline:
        run = pipeline.run(numbers(*range(30)))

        def kill():
            until(lambda: len(list(tmp_path.glob("begun-*"))) >= 2)
            for path in tmp_path.glob("*-*"):
                kind, _, pid = path.name.partition("-")
                if kind in ("double", "sum"):
                    os.kill(int(pid), signal.SIGKILL)
                    killed.add(kind)
            (tmp_path / "wait").unlink()

        thread = threading.Thread(target=kill)
        thread.start()
        results = [parcel.result for parcel in run]
        thread.join()
    assert killed == {"double", "sum"}
    assert sorted(results) == [(number, 2 * number) for number in range(30)]


def test_a_stage_rests_while_what_it_made_waits(tmp_path):
    (tmp_path / "wait").touch()
    asked = []

    def source():
        if len(asked) == 100:
            return None
        asked.append(len(asked))
        return asked[-1]

    with Pipeline(stages(tmp_path)) as pipeline:
        run = pipeline.run(source)
        most = []

        def look():
            until((tmp_path / "begun-0").exists)
            before = -1
            while before != len(asked):  # until no more is asked for
                before = len(asked)
                time.sleep(2)
            most.append(len(asked))
            (tmp_path / "wait").unlink()

        thread = threading.Thread(target=look)
        thread.start()
        assert len(list(run)) == 100
        thread.join()
    assert most[0] <= 8


def test_a_batch_that_kills_every_worker_ends_the_work_with_a_line(tmp_path):
    with (
        Pipeline(stages(tmp_path, deadly=(3,))) as pipeline,
        pytest.raises(WorkMissingError, match="5 workers died at one batch"),
    ):
        list(pipeline.run(numbers(*range(5))))
    assert len(list(tmp_path.glob("died-3-*"))) == 5


def test_an_error_of_ours_comes_back_as_itself(tmp_path):
    with Pipeline(stages(tmp_path)) as pipeline, pytest.raises(UserError, match=r"^-1 is negative; give 0 or more$"):
        list(pipeline.run(numbers(1, -1)))


def test_a_stage_without_room_ends_the_work_instead_of_waiting_for_ever(tmp_path):
    first, second = stages(tmp_path)
    crowded = Stage(**{**vars(first), "cpus": 1000.0})
    with (
        Pipeline([crowded, second], wait_s=3) as pipeline,
        pytest.raises(WorkMissingError, match=r"no worker of stage double has come up for 3 s.*1000 CPU"),
    ):
        list(pipeline.run(numbers(1)))


def test_every_stage_is_looked_at(tmp_path, monkeypatch):
    looked = set()
    monkeypatch.setattr(_Pool, "check", lambda pool, wait_s: looked.add((pool.stage.name, wait_s)))
    with Pipeline(stages(tmp_path), wait_s=7) as pipeline:
        list(pipeline.run(numbers(1)))
    assert looked == {("double", 7), ("sum", 7)}


def test_a_pool_grows_while_it_works(tmp_path):
    deadline, count = time.monotonic() + _DEADLINE_S, itertools.count()

    def source():  # as long as it takes
        assert time.monotonic() < deadline
        return next(count) if len(list(tmp_path.glob("sum-*"))) < 3 else None

    with Pipeline(stages(tmp_path)) as pipeline:
        for parcel in pipeline.run(source):
            if parcel.batch == 5:
                pipeline.grow("sum", 3)
    assert pipeline.spent["sum"].calls == next(count)


def test_a_batch_whose_data_is_lost_is_made_again_from_the_start(tmp_path):
    (tmp_path / "lose-7").touch()
    with Pipeline(stages(tmp_path)) as pipeline:
        assert [parcel.result for parcel in pipeline.run(numbers(7))] == [(7, 14)]
    assert pipeline.spent["double"].calls == 2


def test_the_workers_of_the_last_stage_are_started_first(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(engine, "_Pool", lambda stage: started.append(stage.name))
    Pipeline(stages(tmp_path))
    assert started == ["sum", "double"]


def is_gone(handle):
    try:
        ray.get(handle.up.remote())
    except RayActorError:
        return True
    return False


def test_no_worker_is_left_at_the_end(tmp_path):
    with Pipeline(stages(tmp_path)) as pipeline:
        list(pipeline.run(numbers(1)))
        handles = [actor.handle for pool in pipeline._pools for actor in pool.actors]
    assert len(handles) == 2
    for handle in handles:
        until(lambda handle=handle: is_gone(handle))


@pytest.fixture
def pool(tmp_path):
    """Two actors that are started; killed at the end."""
    pool = _Pool(stages(tmp_path, doubles=2)[0])
    handles = [actor.handle for actor in pool.actors]
    yield pool
    for handle in {*handles, *(actor.handle for actor in pool.actors)}:
        ray.kill(handle)


def arrive(pool):
    """Take in all that the pool expects."""
    for ref in list(pool.expected):
        ray.wait([ref], fetch_local=False)
        pool.arrived(ref)


def test_a_worker_that_lost_a_call_gets_no_other_before_it_is_up_again(pool):
    assert pool.free("") is None
    arrive(pool)
    for actor in pool.actors:
        actor.calls = 2
    assert pool.free("") is None
    lost = pool.actors[1]
    pool.lost(lost)
    assert pool.free("") is None
    arrive(pool)
    assert pool.free("") is lost
    pool.lost(lost)  # its second call
    arrive(pool)
    assert lost.calls == 0


def test_data_stay_on_their_node_where_several_are_as_free(pool):
    arrive(pool)
    here, there = pool.actors
    assert here.node == ray.get_runtime_context().get_node_id()
    there.node = "another"
    assert [pool.free(node) for node in (here.node, "another")] == [here, there]
    there.calls = 1
    assert pool.free("another") is here


def test_a_worker_that_will_never_be_up_is_replaced(pool):
    arrive(pool)
    gone, other = pool.actors
    ray.kill(gone.handle)
    until(lambda: is_gone(gone.handle))
    pool.lost(gone)
    arrive(pool)
    assert pool.actors[0] is other
    assert pool.actors[1] is not gone
    arrive(pool)
    assert [actor.up for actor in pool.actors] == [True, True]


def test_workers_that_die_together_are_one_loss_of_a_batch(tmp_path):
    """As with their node: those that had nothing to do are found dead before they are given the batch."""
    with Pipeline(stages(tmp_path, sums=engine._LOSSES + 1)) as pipeline:
        for pool in pipeline._pools:
            arrive(pool)
        for actor in pipeline._pools[1].actors:
            ray.kill(actor.handle)
            until(lambda handle=actor.handle: is_gone(handle))
        assert [parcel.result for parcel in pipeline.run(numbers(3))] == [(3, 6)]


def test_a_stage_may_be_without_a_worker_for_a_while(pool, monkeypatch):
    now = [pool._up_at]
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: now[0]))
    arrive(pool)
    now[0] += 100
    pool.check(60)
    for actor in pool.actors:
        pool.lost(actor)
    now[0] += 59
    pool.check(60)
    now[0] += 2
    with pytest.raises(WorkMissingError, match="no worker of stage double has come up for 60 s"):
        pool.check(60)
