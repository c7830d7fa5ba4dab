"""What Prometheus sees of a job, and that the dashboard asks for what is there."""

import json
import re
import sys
import time
import urllib.request
from pathlib import Path

import ray
from deadlines import extend
from ray import cloudpickle

from voxfleet.engine import console, metrics
from voxfleet.engine.console import Progress
from voxfleet.engine.pipeline import Pipeline, Stage

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
DASHBOARD = Path(__file__).parents[2] / "configs" / "cluster" / "grafana.json"
_WITHIN_S = extend(60)


class Double:
    """A stage that takes a moment."""

    def __call__(self, batch):
        time.sleep(0.02)
        return 2 * batch


def served(job):
    """What the node serves of a job, by name."""
    port, found = ray.nodes()[0]["MetricsExportPort"], {}
    for line in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode().splitlines():
        if line.startswith("ray_voxfleet") and f'job="{job}"' in line:
            found[line.partition("{")[0]] = float(line.split()[-1])
    return found


def test_prometheus_finds_what_a_job_does(ray_session, monkeypatch):
    monkeypatch.setattr(console, "_job", "paint")
    monkeypatch.setattr("voxfleet.engine.pipeline._SHOW_S", 0.0)
    progress = Progress("walls", 10, "walls")
    progress.skip(2)
    progress.advance(3)
    progress.advance(1)
    metrics.show("dit", samples_per_s=12.5, data_wait_share=0.25, loss=3.0)
    batches = iter(range(20))
    with Pipeline([Stage(name="doors", kind=Double, arguments=())]) as pipeline:
        assert len(list(pipeline.run(lambda: next(batches, None)))) == 20
    deadline = time.monotonic() + _WITHIN_S
    while len(there := served("paint")) < 6 or there["ray_voxfleet_queue_length"]:  # what was exported at first is old
        assert time.monotonic() < deadline, there
        time.sleep(0.5)
    assert there["ray_voxfleet_units_total"] == 4
    assert there["ray_voxfleet_units_left"] == 4
    assert there["ray_voxfleet_samples_per_s"] == 12.5
    assert there["ray_voxfleet_data_wait_share"] == 0.25
    assert there["ray_voxfleet_queue_length"] == 0
    assert 0 <= there["ray_voxfleet_busy_share"] <= 1


def test_the_dashboard_asks_for_metrics_that_there_are():
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {name for name in re.findall(r"ray_(voxfleet_\w+)", DASHBOARD.read_text())}
    assert {name.removesuffix("_total") for name in asked} == set(metrics.MEANING)
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) == 10
