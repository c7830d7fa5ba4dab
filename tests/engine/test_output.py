"""Whom an output folder belongs to: what begins it, continues it, is refused, and may begin it anew."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from voxfleet import storage
from voxfleet.engine import job
from voxfleet.engine.output import LEDGER, Output
from voxfleet.errors import UserError
from voxfleet.tracking.base import TrackingConfig


@dataclass(frozen=True)
class Config:
    spacing: int = 2
    page: str = "a"
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@pytest.fixture
def output(tmp_path):
    return lambda job="prepare", inputs=None, **values: Output(job, f"{tmp_path}/out", Config(**values), inputs or {})


def begin(output):
    """As a run does; returns the key of its record."""
    with output.held():
        key = output.record("name").key
        output.claim()
    return key


def test_the_same_configuration_continues_and_its_record_too(output):
    first = begin(output())
    assert begin(output()) == first
    assert begin(output(page="b")) == first  # which decides nothing
    assert output().record("name").begun


@pytest.mark.parametrize(
    "other", [{"spacing": 3}, {"job": "encode"}, {"inputs": {"source": "digest"}}], ids=["key", "job", "input"]
)
def test_a_folder_in_which_a_stopped_run_left_nothing_is_begun_anew(output, other):
    first = begin(output())
    assert not output(**other).record("name").begun
    assert begin(output(**other)) != first
    assert begin(output(**other)) == begin(output(**other))


@pytest.mark.parametrize("left", ["part-00000.parquet", f"{LEDGER}/part-00000.parquet", ".voxfleet/unsent.json"])
def test_a_folder_in_which_a_run_left_something_is_not(output, tmp_path, left):
    begin(output())
    storage.write_bytes(f"{tmp_path}/out/{left}", b"")
    with pytest.raises(UserError, match="was begun with spacing = 2, now it is 3; name another folder"):
        begin(output(spacing=3))
    with pytest.raises(UserError, match="was made by job prepare, not encode"):
        begin(output(job="encode"))
    begin(output())


def test_a_folder_of_something_else_is_refused(output, tmp_path):
    storage.write_bytes(f"{tmp_path}/out/holiday.jpg", b"")
    with pytest.raises(UserError, match=r"holds something else \(holiday\.jpg\)"):
        output().check()


def test_where_nothing_can_be_written_is_said_before_ray_starts(output, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "session", lambda resources: pytest.fail("Ray would start"))
    (tmp_path / "file").touch()
    below = dataclasses.replace(output(), folder=f"{tmp_path}/file/out")
    with pytest.raises(UserError, match=r"cannot write .*/out \(.*/file is not a folder\)"), job.job_session(below):
        pass
    assert (tmp_path / "file").read_bytes() == b""
