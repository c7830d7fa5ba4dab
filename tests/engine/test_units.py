"""Units and ledger on real Ray: done once, errors come back as themselves, what failed is tried again."""

import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from voxfleet.engine.console import Progress
from voxfleet.engine.units import Ledger, Pool, run_units
from voxfleet.errors import UserError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
pytestmark = pytest.mark.usefixtures("ray_session")


def mark(folder, unit, number):
    """Leave a line a call, and fail for numbers above 100 or negative ones."""
    with open(Path(folder) / "calls", "a") as calls:
        calls.write(f"{unit}\n")
    if number < 0:
        raise UserError(f"{unit} is negative; give 0 or more")
    return [{"unit": unit, "square": number**2, **({"error": "too large"} if number > 100 else {})}]


class Marker:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, unit, number):
        return mark(self.folder, unit, number)


class Task:
    """mark() with its folder, as jobs bind their configuration."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, unit, number):
        return mark(self.folder, unit, number)


def do(tmp_path, units, pool=None):
    work = Marker if pool else Task(str(tmp_path))
    arguments = (str(tmp_path),) if pool else ()
    ledger = Ledger(str(tmp_path / "ledger"))
    return run_units(units, work, ledger, Progress("test", len(units), "units"), pool=pool, arguments=arguments)


def calls(tmp_path):
    return sorted((tmp_path / "calls").read_text().split())


@pytest.mark.parametrize("pool", [None, Pool(workers=2, cpus=1, gpus=0)])
def test_units_are_done_once(tmp_path, pool):
    units = {f"u{i}": i for i in range(5)}
    rows = do(tmp_path, units, pool)
    assert {name: row[0]["square"] for name, row in rows.items()} == {f"u{i}": i * i for i in range(5)}
    assert do(tmp_path, {**units, "u9": 9}, pool)["u9"][0]["square"] == 81
    assert calls(tmp_path) == ["u0", "u1", "u2", "u3", "u4", "u9"]


def test_a_unit_with_an_error_is_returned_and_tried_again(tmp_path):
    rows = do(tmp_path, {"a": 1, "b": 101})
    assert rows["b"][0]["error"] == "too large"
    assert Ledger(str(tmp_path / "ledger")).done() == {"a"}
    assert do(tmp_path, {"a": 1, "b": 10})["b"][0]["square"] == 100
    assert calls(tmp_path) == ["a", "b", "b"]


@pytest.mark.parametrize("pool", [None, Pool(workers=1, cpus=1, gpus=0)])
def test_an_error_of_ours_comes_back_as_itself(tmp_path, pool):
    with pytest.raises(UserError) as caught:
        do(tmp_path, {"bad": -1}, pool)
    assert type(caught.value) is UserError
    assert str(caught.value) == "bad is negative; give 0 or more"
