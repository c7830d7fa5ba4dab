"""The order of an epoch: exactly once, the same for any number of workers, kind to files."""

import numpy as np
import pytest

from voxfleet.data import plan as plans
from voxfleet.data.plan import Plan

ROW_BYTES = 1000


@pytest.fixture(params=["one window", "windows"])
def windows(request, monkeypatch):
    """Whether an epoch is one window, or many of 24 rows."""
    if request.param == "windows":
        monkeypatch.setattr(plans, "WINDOW_BYTES", 24 * ROW_BYTES)
    return request.param


def make(rows=103, batch_size=8, per_group=7, balanced=False, seed=7, minority=10):
    labels = (np.arange(rows) % minority == 0).astype(np.int64)
    return Plan(labels, np.arange(rows) // per_group, batch_size, ROW_BYTES, seed, balanced)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize(("rows", "batch_size"), [(103, 8), (5, 50), (12, 4), (400, 3), (97, 96)])
def test_each_epoch_sees_every_sample_once_over_any_number_of_workers(windows, rows, batch_size, world):
    plan = make(rows, batch_size)
    for epoch in range(3):
        order = plan.order(epoch)
        seen = []
        for step in range(plan.steps):
            parts = [plan.part(step, world, rank) for rank in range(world)]
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1
            seen += [row for part in parts for row in order[part].tolist()]
        assert seen == order.tolist()  # the global batches are the same for every number of workers
        assert sorted(seen) == list(range(rows))


@pytest.mark.parametrize("rows", [100, 103])
def test_balanced_draws_are_within_one_of_equal_and_starve_nobody(windows, rows):
    plan = make(rows, balanced=True)
    drawn = np.zeros(rows, dtype=int)
    for epoch in range(50):
        order = plan.order(epoch)
        assert len(order) == rows
        counts = np.bincount(plan.labels[order])
        assert abs(counts[0] - counts[1]) <= 1
        drawn += np.bincount(order, minlength=rows)
    for label in (0, 1):
        of_class = drawn[plan.labels == label]
        assert of_class.max() - of_class.min() <= 1


def test_orders_differ_by_epoch_and_seed_and_are_pinned(windows):
    # a changed order would break the resumption of every run
    pinned = {"one window": [0, 8, 19, 26, 9, 3, 18, 21], "windows": [27, 15, 8, 19, 3, 11, 20, 23]}
    assert make(30, 4, 2, seed=0).order(0).tolist()[:8] == pinned[windows]
    assert make().order(0).tolist() != make().order(1).tolist()
    assert make().order(0).tolist() != make(seed=8).order(0).tolist()


def test_a_worker_reads_few_row_groups_and_batches_mix_many(monkeypatch):
    """4096 rows in groups of 8, windows of 512 rows: a window needs 64 groups, each of 4 workers a quarter of them."""
    monkeypatch.setattr(plans, "WINDOW_BYTES", 512 * ROW_BYTES)
    plan = make(4096, 64, per_group=8)
    order = plan.order(0)
    read = 0
    for start in range(0, plan.steps, plan.window_steps):
        for rank in range(4):
            parts = [order[plan.part(step, 4, rank)] for step in range(start, start + plan.window_steps)]
            read += len(np.unique(plan.groups[np.concatenate(parts)]))
    assert read <= 1.5 * plan.groups.max()
    mixed = [len(np.unique(plan.groups[order[plan.part(step, 1, 0)]])) for step in range(plan.steps)]
    assert min(mixed) > 30


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_units_hold_all_rows_of_a_worker_in_tasks_of_bounded_size(monkeypatch, world, batch_size):
    monkeypatch.setattr(plans, "WINDOW_BYTES", 24 * ROW_BYTES)
    monkeypatch.setattr(plans, "UNIT_BYTES", 16 * ROW_BYTES)
    plan = make(403, batch_size)
    for rank in range(world):
        for first in (0, 1, plan.steps - 1):
            rows = sum(len(range(*plan.part(s, world, rank).indices(403))) for s in range(first, plan.steps))
            units = plan.units(first, world, rank)
            assert sum(units) == rows
            assert all(0 < unit <= 24 for unit in units)
