"""Measures of volumes, their limits, and the gate."""

import numpy as np
import pytest

from voxfleet.data.quality import CHECKS, GateConfig, limits, verdict, volume_checks, widened


def test_checks_measure_what_they_say():
    data = np.zeros((10, 10, 10), dtype=np.float32)
    data[2:4] = 0.5  # 200 voxels on one side
    data[5, 0] = 0.25  # 10 more, that are not bright
    checks = volume_checks(data, (2.0, 2.0, 3.0))
    assert tuple(checks) == CHECKS
    assert checks["brain_mean"] == pytest.approx((200 * 0.5 + 10 * 0.25) / 210)
    assert checks["brain_ml"] == pytest.approx(210 * 12 / 1000)
    assert checks["bright_voxels"] == 200
    assert checks["p99"] == 0.5
    assert checks["finite"] == 1
    expected = np.corrcoef(data.ravel(), data[::-1].ravel())[0, 1]
    assert checks["symmetry"] == pytest.approx(expected)
    assert expected < 0
    assert volume_checks(data + data[::-1], (2.0, 2.0, 3.0))["symmetry"] == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.7, np.nan, np.inf])
def test_checks_are_numbers_whatever_was_generated(value):
    checks = volume_checks(np.full((4, 4, 4), value, dtype=np.float32), (2, 2, 2))
    assert all(isinstance(measure, float) and np.isfinite(measure) for measure in checks.values())
    assert checks["finite"] == np.isfinite(value)
    assert checks["symmetry"] == 0


def test_limits_are_the_range_of_each_measure():
    rows = [{"a": 3.0, "b": -1.0}, {"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 0.0}]
    assert limits(rows) == {"a": [1.0, 3.0], "b": [-1.0, 5.0]}
    with pytest.raises(ValueError, match="rows is empty"):
        limits([])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("share", [0.002, 0.0099, 0.0101, 0.3, 0.999])
def test_the_99th_percentile_is_numpys_however_much_is_brain(order, share):
    data = np.random.default_rng(0).random((30, 20, 10), dtype=np.float32)
    data = np.asarray(np.where(data < 1 - share, data * 0.2, data), order=order)
    assert volume_checks(data, (1, 1, 1))["p99"] == pytest.approx(np.percentile(data, 99), rel=1e-5)


def test_a_sample_is_kept_within_the_limits_and_their_slack():
    allowed = widened({"brain_ml": [100.0, 200.0], "symmetry": [0.8, 0.9]}, 0.1)
    good = {"finite": 1.0, "brain_ml": 209.0, "symmetry": 0.795}
    assert verdict(good, allowed) == ""
    assert verdict({**good, "brain_ml": 211.0}, allowed) == "brain_ml is 211, allowed is 90 to 210"
    assert verdict({**good, "symmetry": 0.78}, allowed).startswith("symmetry is 0.78")
    assert verdict({**good, "finite": 0.0}, allowed) == "not finite"
    assert verdict({**good, "brain_ml": float("nan")}, allowed).startswith("brain_ml")


@pytest.mark.parametrize(
    "keys", [{"slack": -0.1}, {"slack": np.inf}, {"novelty": 0.0}, {"novelty": 0.5}, {"attempts": 0}]
)
def test_a_gate_that_means_nothing(keys):
    with pytest.raises(ValueError, match=f"^{next(iter(keys))} is "):
        GateConfig(**keys)
