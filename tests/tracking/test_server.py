"""A tracking server that dies in the middle of a job and comes back."""

import threading

import mlflow
import pytest
import torch
from deadlines import extend
from made_up import MODEL

from voxfleet import storage
from voxfleet.packages import read_package_config, write_package
from voxfleet.tracking.base import TrackingConfig
from voxfleet.tracking.outbox import Record
from voxfleet.tracking.record import open_tracker, resolve_model


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_has_everything_once_and_in_order(mlflow_server, tmp_path):
    server, said, sent_again, failed = mlflow_server, [], threading.Event(), threading.Event()

    def say(line):
        said.append(line)
        (failed if "does not take the record" in line else sent_again).set()

    def log(tracker, steps):
        for step in steps:
            tracker.log_metrics([{"step": step, "loss": 1.0 / (1 + step)}])
            if step % 10 == 5:
                tracker.log_metrics([{"step": step, "val_loss": float("nan") if step == 5 else 2.0}])

    package = str(tmp_path / "package")
    mark = write_package(package, "model", {"w": torch.ones(1000)}, MODEL)
    record = Record(name="dit", key="abc", unsent=str(tmp_path / "unsent.json"), begun=False)
    config = TrackingConfig(uri=server.uri, flush_s=120)
    server.start()
    client = mlflow.MlflowClient(server.uri)
    with open_tracker(config, record, say) as tracker:
        tracker.log_params({"model": {"depth": 2}})
        log(tracker, range(20))
        server.kill()  # wherever it was
        log(tracker, range(20, 40))
        tracker.log_document("config.json", {"depth": 2})
        tracker.register_package(package, mark, "final")
        assert failed.wait(extend(60))
        log(tracker, range(40, 50))
        server.start()
        log(tracker, range(50, 60))
    (run,) = client.search_runs([client.get_experiment_by_name("voxfleet").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, 1.0 / (1 + step)) for step in range(60)]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")] == [5, 15, 25, 35, 45, 55]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.depth": "2"}
    assert not storage.exists(record.unsent)
    assert said[-1].endswith("again")
    for uri in ("models:/dit/1", "models:/dit@final"):
        folder = resolve_model(uri, config, str(tmp_path / uri.replace(":", "").replace("/", "-")))
        assert folder.startswith(str(tmp_path / "models-"))  # the server's own files are not ours to open
        assert read_package_config(folder, "model")["fingerprint"] == mark
        assert storage.names(folder) == ["config.json", "model.safetensors"]
