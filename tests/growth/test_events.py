"""Rows before servers, and campaigns and trainings whose outcome is known."""

import dataclasses
import math

import numpy as np
import pytest

from voxfleet.errors import UserError
from voxfleet.growth import campaign, training
from voxfleet.growth.campaign import Campaign
from voxfleet.growth.events import Clock, Server
from voxfleet.growth.overheads import Overheads
from voxfleet.growth.training import Training

COSTS = Overheads(call_s=1e-6, task_s=0.0, message_s=1e-3, commit_s=1e-6, row_s=0.0, bytes_per_s=math.inf)
CAMPAIGN = Campaign(
    total=64_000,
    batch=64,
    draw_s=10.0,
    jitter=0.0,
    start_s=0.0,
    sample_bytes=1e6,
    link_bytes_per_s=1e12,
    write_s=1e-6,
    writers_per_gpu=2.0,
    put_s=0.0,
    puts_per_s=1e9,
)
TRAINING = Training(
    steps=10_000,
    step_s=0.1,
    jitter=0.0,
    gradient_bytes=0.0,
    overlap=0.0,
    link_bytes_per_s=1e10,
    latency_s=0.0,
    log_every=10,
    checkpoint_every=100,
    snapshot_s=0.0,
    state_bytes=1e9,
    node_lives_s=math.inf,
    restart_s=60.0,
)


def generated(gpus=4, **changes):
    """A campaign, with some of its times or costs changed."""
    costs = {name: changes.pop(name) for name in list(changes) if hasattr(COSTS, name)}
    return campaign.simulate(dataclasses.replace(CAMPAIGN, **changes), dataclasses.replace(COSTS, **costs), gpus)


def trained(gpus=8, **changes):
    """A training, with some of its times or costs changed."""
    costs = {name: changes.pop(name) for name in list(changes) if hasattr(COSTS, name)}
    return training.simulate(dataclasses.replace(TRAINING, **changes), dataclasses.replace(COSTS, **costs), gpus)


def test_a_row_is_served_in_its_order_by_as_many_hands_as_there_are():
    clock, ends = Clock(), []
    server = Server(clock, 2)
    for name, seconds in (("a", 3.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)):
        server.do(seconds, lambda name=name: ends.append((name, clock.now)))
    assert server.waiting == 2
    assert clock.run() == 3.0
    assert ends == [("b", 1.0), ("c", 2.0), ("a", 3.0), ("d", 3.0)]
    assert server.busy_s == 6.0
    assert server.share(3.0) == 1.0
    assert server.longest == 2


def test_a_queue_with_one_server_waits_as_theory_says():
    """Pollaczek and Khinchine, M/D/1: the mean wait is r / (2 (1 - r)) services at load r."""
    clock, waits, load = Clock(), [], 0.8
    server, chance = Server(clock, 1), np.random.default_rng(0)
    for at in np.cumsum(chance.exponential(1 / load, 200_000)):

        def arrive(at=at):
            server.do(1.0, lambda: waits.append(clock.now - at - 1.0))

        clock.after(at, arrive)
    clock.run()
    assert np.mean(waits) == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def test_gpus_that_nothing_holds_up_take_what_their_work_takes():
    outcome = generated()
    assert outcome.seconds == pytest.approx(64_000 / 64 / 4 * 10, rel=1e-3)
    assert outcome.efficiency == pytest.approx(1, abs=1e-3)
    assert outcome.bottleneck == "GPUs"


@pytest.mark.parametrize(
    ("slow", "part", "seconds"),
    [
        ({"call_s": 10.0}, "driver", 2 * 1000 * 10),  # two calls a batch
        ({"write_s": 2.5}, "writers", 64_000 * 2.5 / 8),
        ({"put_s": 20.0}, "writers", 64_000 * 2 * 20 / 16 / 8),
        ({"puts_per_s": 10.0}, "storage requests", 64_000 * 2 / 10),
        ({"link_bytes_per_s": 2e6}, "network", 64_000 * 1e6 / 2e6),
        ({"commit_s": 1000.0}, "commits", 64_000 / 512 * 1000 / 4),
        ({"row_s": 1.0}, "driver", 64_000),
    ],
)
def test_what_holds_a_campaign_up_is_named_and_bounds_it(slow, part, seconds):
    outcome = generated(**slow)
    assert outcome.bottleneck == part
    assert outcome.seconds == pytest.approx(seconds, rel=0.05)


def test_twice_the_gpus_take_half_the_time_until_something_else_is_full():
    # the driver is full at 50 GPUs
    seconds = {gpus: generated(gpus, call_s=0.1, jitter=0.05).seconds for gpus in (8, 16, 100, 200)}
    assert seconds[8] / seconds[16] == pytest.approx(2, rel=0.05)
    assert seconds[100] / seconds[200] == pytest.approx(1, rel=0.05)


def test_a_training_that_nothing_holds_up_computes_alone():
    outcome = trained()
    assert outcome.seconds == pytest.approx(1000)
    assert outcome.efficiency == pytest.approx(1)
    assert outcome.shares["compute"] == pytest.approx(1)
    assert outcome.driver == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("slow", "part", "seconds"),
    [
        ({"gradient_bytes": 1e9}, "all-reduce", 1000 + 10_000 * 2 * 7 / 8 * 0.1),
        ({"gradient_bytes": 1e9, "overlap": 0.5}, "all-reduce", 1000 + 10_000 * (2 * 7 / 8 * 0.1 - 0.05)),
        ({"read_bytes": 1e9, "storage_bytes_per_s": 4e10}, "data", 2000),
        ({"snapshot_s": 5.0}, "checkpoints", 1500),
        ({"bytes_per_s": 5e7}, "checkpoints", 2000),
    ],
)
def test_what_holds_a_training_up_is_named(slow, part, seconds):
    outcome = trained(**slow)
    assert outcome.bottleneck == part
    assert outcome.seconds == pytest.approx(seconds, rel=0.01)
    assert sum(outcome.shares.values()) == pytest.approx(1)


def test_a_step_waits_for_the_slowest_worker():
    largest = np.random.default_rng(1).lognormal(-0.005, 0.1, (20_000, 64)).max(axis=1).mean()
    assert trained(64, jitter=0.1).seconds == pytest.approx(1000 * largest, rel=0.01)


def test_lost_nodes_cost_their_steps_since_the_last_checkpoint_and_the_start():
    outcome = trained(steps=1_000_000, node_lives_s=2_000.0)
    assert outcome.lost > 30
    # Daly 2006, eq. 13, without a cost of the checkpoint: M (exp(tau / M) - 1) of each interval
    life, interval = 2_000.0, 10.0
    expected = life * (math.exp(interval / life) - 1) * 10_000
    assert outcome.seconds - outcome.lost * 60 == pytest.approx(expected, rel=0.02)
    assert outcome.shares["compute"] == pytest.approx(100_000 / outcome.seconds, rel=0.02)
    assert sum(outcome.shares.values()) == pytest.approx(1)


def test_a_training_that_would_never_end_is_refused():
    with pytest.raises(UserError, match=r"lost every 10 s.*every 100 s: the training would never end"):
        trained(step_s=1.0, node_lives_s=10.0)
    with pytest.raises(UserError, match=r"every 100 s: the training would never end"):
        trained(read_bytes=1e9, storage_bytes_per_s=8e9, node_lives_s=10.0)
    with pytest.raises(ValueError, match="step_s is inf; it must be finite"):
        trained(step_s=math.inf)
    with pytest.raises(ValueError, match="overlap is 2"):
        trained(overlap=2)
