"""MLflow as a tracker: the only file that imports it."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

import mlflow
from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException

from voxfleet.errors import UserError
from voxfleet.tracking.base import TrackingConfig, flatten

RUN_KEY_TAG = "voxfleet.key"
_METRICS_A_CALL, _PARAMS_A_CALL, _PARAM_LENGTH = 1000, 100, 6000

# table migrations of a new store are reported line by line
for _name in ("alembic", "mlflow.store.db.utils"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class MlflowTracker:
    """One MLflow run."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record nested parameters under dotted names; a resumed run keeps those it has."""
        known = self._client.get_run(self._run_id).data.params
        new = [Param(k, str(v)[:_PARAM_LENGTH]) for k, v in flatten(params).items() if k not in known]
        for start in range(0, len(new), _PARAMS_A_CALL):
            self._client.log_batch(self._run_id, params=new[start : start + _PARAMS_A_CALL])

    def log_metrics(self, points: list[dict[str, float]]) -> None:
        """Record points, each with its ``step`` and any metrics, in few calls."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(key, value, now, int(point.get("step", 0)))
            for point in points
            for key, value in point.items()
            if key != "step"
        ]
        for start in range(0, len(metrics), _METRICS_A_CALL):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _METRICS_A_CALL])

    def log_artifact(self, path: str) -> None:
        """Keep a copy of a local file."""
        self._client.log_artifact(self._run_id, path)


@contextlib.contextmanager
def mlflow_run(config: TrackingConfig, name: str, key: str) -> Iterator[MlflowTracker]:
    """The MLflow run of the job that ``key`` (its output) names: a new one, or the one that an earlier try began.

    Raises:
        UserError: if the store cannot be opened.
    """
    uri = config.resolved_uri or ""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        client = mlflow.MlflowClient(tracking_uri=config.resolved_uri)
        run_id = _find_or_create(client, config.experiment, name, key)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot open the MLflow store {config.resolved_uri} ({reason}); check tracking.uri") from error
    status = RunStatus.FAILED
    try:
        yield MlflowTracker(client, run_id)
        status = RunStatus.FINISHED
    finally:
        client.set_terminated(run_id, RunStatus.to_string(status))


def _find_or_create(client: mlflow.MlflowClient, experiment: str, name: str, key: str) -> str:
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    quoted = key.replace("'", "")
    runs = client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{quoted}'", max_results=1)
    if runs:
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0].info.run_id
    return client.create_run(experiment_id, run_name=name, tags={RUN_KEY_TAG: quoted}).info.run_id
