"""The outbox: order, nothing lost, nothing raised into the job. The store is a fake, and no test waits."""

import json
import threading

import pytest
from deadlines import extend

from voxfleet import storage
from voxfleet.tracking.outbox import Outbox, QueuedTracker, Record, RefusedError, growing_pause, masked, recording


class FakeStore:
    """Fails ``failures`` times, for ``kinds`` where they are given, and refuses metrics of ``refused`` names."""

    address = "http://store"

    def __init__(self, failures=0, kinds=(), refused=()):
        self.failures, self.kinds, self.refused = failures, kinds, refused
        self.calls, self.sent = 0, []
        self.tried = threading.Event()

    def send(self, operations):
        self.calls += 1
        self.tried.set()
        if self.failures > 0 and (not self.kinds or operations[0]["kind"] in self.kinds):
            self.failures -= 1
            raise ConnectionError("Connection refused")
        keys = [metric[0] for operation in operations for metric in operation.get("metrics", [])]
        if set(keys) & set(self.refused):
            raise RefusedError(f"bad name in {keys}")
        self.sent.extend(operations)


@pytest.fixture
def record(tmp_path):
    return Record(name="run", key="key", unsent=str(tmp_path / ".voxfleet" / "unsent.json"), begun=True)


def outbox(store, record, said=None, *, operations=(), flush_s=1e9, clock=None, pause=lambda failures: 0.0):
    options = {} if clock is None else {"clock": clock}
    say = (said if said is not None else []).append
    return Outbox(store, record, say, flush_s=flush_s, operations=list(operations), pause=pause, **options)


def losses(store):
    return [
        (key, step) for o in store.sent if o["kind"] == "metrics" for key, _, _, step in o["metrics"] if key == "loss"
    ]


def test_everything_arrives_in_order_although_the_store_fails(record):
    store, said = FakeStore(failures=7), []
    box = outbox(store, record, said)
    tracker = QueuedTracker(box, "model")
    for step in range(50):
        tracker.log_metrics([{"step": step, "loss": 1.0}])
    assert box.close() == 0
    assert losses(store) == [("loss", step) for step in range(50)]
    assert len(said) == 2  # once that it fails, once that it works again
    assert not storage.exists(record.unsent)


def test_points_that_wait_are_sent_together(record):
    class Slow(FakeStore):
        go = threading.Event()

        def send(self, operations):
            self.go.wait()
            super().send(operations)

    store = Slow()
    box = outbox(store, record)
    for step in range(500):
        box.put("metrics", metrics=[("loss", 1.0, 0, step)])
    store.go.set()
    box.close()
    assert losses(store) == [("loss", step) for step in range(500)]
    assert store.calls <= 2


def test_a_call_returns_while_the_store_hangs(record):
    answer = threading.Event()

    class Hanging(FakeStore):
        def send(self, operations):
            answer.wait()
            super().send(operations)

    store = Hanging()
    box = outbox(store, record)
    for step in range(3):
        box.put("metrics", metrics=[("loss", 1.0, 0, step)])
    assert store.sent == []
    answer.set()
    assert box.close() == 0


def test_what_is_left_at_the_end_is_kept_and_sent_by_the_next_run(record):
    store, said = FakeStore(failures=10**9), []
    box = outbox(store, record, said, flush_s=0)
    tracker = QueuedTracker(box, "model")
    tracker.log_params({"a": {"b": 1}})
    tracker.log_metrics([{"step": 1, "loss": 0.5, "time": 12.0}, {"step": 2, "loss": float("nan")}])
    tracker.log_document("config.json", {"x": 1})
    assert box.close() == 3
    assert said[-1].startswith("tracking: 3 entries of the record could not be sent to http://store")
    assert record.unsent in said[-1]
    again, operations = Record.read(record.unsent)
    assert (again.key, again.name) == ("key", "run")
    store = FakeStore()
    assert outbox(store, record, operations=operations).close() == 0
    assert [operation["kind"] for operation in store.sent] == ["params", "metrics", "text"]
    assert store.sent[0]["params"] == {"a.b": "1"}
    assert store.sent[1]["metrics"][0] == ["loss", 0.5, 12000, 1]
    assert json.loads(store.sent[2]["text"]) == {"x": 1}
    assert not storage.exists(record.unsent)


def test_what_is_not_sent_is_kept_while_the_job_runs(record):
    """The process may be killed."""
    kept = threading.Event()

    class Watched(Record):
        def keep(self, operations):
            super().keep(operations)
            kept.set()

    watched = Watched(**vars(record))
    box = outbox(FakeStore(failures=1), watched, pause=lambda failures: 1e9)
    box.put("metrics", metrics=[("loss", 1.0, 0, 1)])
    assert kept.wait(extend(60))
    assert len(Record.read(record.unsent)[1]) == 1
    assert box.close() == 0
    assert not storage.exists(record.unsent)


def test_the_end_waits_for_a_store_that_has_failed_for_less_than_flush_s(record):
    now = iter(range(10**9))
    store = FakeStore(failures=5)
    box = outbox(store, record, flush_s=10**8, clock=lambda: float(next(now)), pause=lambda failures: 0.0)
    box.put("metrics", metrics=[("loss", 1.0, 0, 1)])
    assert box.close() == 0
    store = FakeStore(failures=10**9)
    box = outbox(store, record, flush_s=20, clock=lambda: float(next(now)), pause=lambda failures: 0.0)
    box.put("metrics", metrics=[("loss", 1.0, 0, 1)])
    assert box.close() == 1


def test_what_the_store_refuses_is_left_out_alone(record):
    store, said = FakeStore(refused=["bad"]), []
    box = outbox(store, record, said)
    tracker = QueuedTracker(box, "model")
    for step in range(20):
        tracker.log_metrics([{"step": step, "loss": 1.0}])
        if step in (3, 7):
            tracker.log_metrics([{"step": step, "bad": 1.0}])
    assert box.close() == 0
    assert losses(store) == [("loss", step) for step in range(20)]
    assert said == ["tracking: http://store refuses metrics (bad name in ['bad']); it is left out"]


def test_files_that_fail_do_not_hold_the_metrics_back(record):
    store, said = FakeStore(failures=10**9, kinds=("artifact",)), []
    box = outbox(store, record, said, flush_s=0)
    tracker = QueuedTracker(box, "model")
    tracker.log_artifact("mosaic.png")
    tracker.log_metrics([{"step": 1, "loss": 1.0}])
    tracker.log_artifact("page.html")
    assert box.close() == 2
    assert losses(store) == [("loss", 1)]
    assert [operation["uri"].rpartition("/")[2] for operation in Record.read(record.unsent)[1]] == [
        "mosaic.png",
        "page.html",
    ]


def test_what_is_not_a_number_is_passed_over(record):
    store = FakeStore()
    box = outbox(store, record)
    QueuedTracker(box, "model").log_metrics([{"step": 1, "loss": 1.0, "note": "text", "none": None}])
    box.close()
    assert [metric[0] for metric in store.sent[0]["metrics"]] == ["loss"]


@pytest.mark.parametrize(
    ("ends", "status"), [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_record_says_how_the_job_ended(record, ends, status):
    store = FakeStore()
    box = outbox(store, record)

    def job():
        with recording(box, QueuedTracker(box, "model")) as tracker:
            tracker.log_metrics([{"step": 1, "loss": 1.0}])
            if ends:
                raise ends

    if ends:
        with pytest.raises(ends):
            job()
    else:
        job()
    assert [operation["kind"] for operation in store.sent] == ["status", "metrics", "status"]
    assert [operation["status"] for operation in (store.sent[0], store.sent[-1])] == ["RUNNING", status]


def test_an_interrupted_wait_still_keeps_what_is_left(record, monkeypatch):
    box = outbox(FakeStore(failures=10**9), record, pause=lambda failures: 1e9)
    box.put("metrics", metrics=[("loss", 1.0, 0, 1)])

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(box._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        box.close()
    assert len(Record.read(record.unsent)[1]) == 1
    box._flush_s = 0
    monkeypatch.undo()
    box.close()


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("no folder")
    record = Record(name="run", key="key", unsent=str(tmp_path / "file" / "unsent.json"), begun=True)
    said = []
    box = outbox(FakeStore(failures=10**9), record, said, flush_s=0)
    box.put("metrics", metrics=[("loss", 1.0, 0, 1)])
    assert box.close() == 1
    assert "cannot keep what is not sent" in said[-1]


def test_pauses_grow_to_a_minute():
    assert [growing_pause(failures) for failures in (1, 2, 3, 7, 10**6)] == [1, 2, 4, 60, 60]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pa@ss@host:5000/x failed", "http://***@host:5000/x failed"),
        ("postgresql://me:secret@db/mlflow", "postgresql://***@db/mlflow"),
        ("sqlite:///demo/m.db\nnext", "sqlite:///demo/m.db next"),
    ],
)
def test_addresses_are_shown_without_passwords(text, shown):
    assert masked(text) == shown


def test_a_store_that_takes_no_record_at_the_end_is_not_asked_for_files(record):
    """It would wait for the same silence twice."""
    both = threading.Event()

    class Counting(FakeStore):
        def send(self, operations):
            try:
                super().send(operations)
            finally:
                if self.calls == 2:
                    both.set()

    store = Counting(failures=100)
    operations = [{"kind": "tags", "tags": {"a": "b"}}, {"kind": "artifact", "uri": "x", "folder": ""}]
    sender = outbox(store, record, operations=operations, flush_s=0, pause=lambda failures: 60.0)
    assert both.wait(extend(30))
    assert sender.close() == 2
    assert store.calls == 3  # the record once more, and then no file
