"""What a job does now, as Ray's metrics: the nodes serve them to Prometheus, configs/cluster/grafana.json shows them.

In Prometheus a name begins with ``ray_``; the labels are the job and its stage (of a training, the run).
"""

import functools

from ray.util.metrics import Counter, Gauge, Metric

from voxfleet.engine import console

_LABELS = ("job", "stage")
_UNITS = "voxfleet_units"
MEANING = {
    _UNITS: "units of work that are finished: subjects, volumes, samples, optimizer steps",
    "voxfleet_units_left": "units of work of the stage that are not finished",
    "voxfleet_samples_per_s": "samples that a training takes in a second",
    "voxfleet_data_wait_share": "share of its time that a training waits for data; the rest is the GPU's, or the CPU's",
    "voxfleet_matrix_share": "what a training computes in a second, over what its devices multiply matrices with",
    "voxfleet_queue_length": "batches that wait for a worker of the stage",
    "voxfleet_busy_share": "share of their time that the workers of the stage compute",
}


@functools.cache
def _metric(name: str) -> Metric:
    kind = Counter if name == _UNITS else Gauge
    return kind(name, MEANING[name], _LABELS)


def count(stage: str, units: int) -> None:
    """``units`` of work more are finished."""
    if units > 0:
        _metric(_UNITS).inc(units, _labels(stage))


def show(stage: str, **values: float) -> None:
    """The current values of gauges, by their names without ``voxfleet_``; others are passed over."""
    for name, value in values.items():
        if (full := f"voxfleet_{name}") in MEANING and full != _UNITS:
            _metric(full).set(value, _labels(stage))


def _labels(stage: str) -> dict[str, str]:
    return {"job": console.job(), "stage": stage}
