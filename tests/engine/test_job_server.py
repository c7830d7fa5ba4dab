"""Following a job over a connection that breaks."""

import socket
from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobStatus

from voxfleet.config.submission import ProfileConfig
from voxfleet.engine import job_server
from voxfleet.engine.job_server import JobServer
from voxfleet.errors import EndedError, NoAnswerError, UserError


class Client:
    """Answers of a job server, one after the other; an exception is raised."""

    def __init__(self, states, tails, log):
        self.states, self.tails, self.log = iter(states), iter(tails), log

    def get_job_info(self, _):
        state = next(self.states)
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(status=state, driver_exit_code=0, message="")

    async def tail_job_logs(self, _):
        for text in next(self.tails):
            if isinstance(text, Exception):
                raise text
            yield text

    def get_job_logs(self, _):
        return self.log


@pytest.fixture
def follow(monkeypatch):
    monkeypatch.setattr(job_server, "_AGAIN_S", 0)

    def run(*answers):
        server = object.__new__(JobServer)
        server.at, server.client = " --address http://head:8265", Client(*answers)
        server.address = "http://head:8265"
        server.follow("job")

    return run


RUNNING, DONE = JobStatus.RUNNING, JobStatus.SUCCEEDED
FAULT = RuntimeError("Request failed with status code 500: no.")


def test_each_line_is_printed_once_over_all_connections(follow, capsys):
    tails = [["one\ntw"], ["one\n", "two\nthree\n", RuntimeError("closed")], ["one\ntwo\nthree\nfour\n"]]
    follow(
        [RUNNING, FAULT, RUNNING, requests.ConnectionError("reset"), RUNNING, DONE],
        tails,
        "one\ntwo\nthree\nfour\nend\n",
    )
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\nend\n"


def test_a_server_that_stays_away_is_given_up_and_the_job_is_not(follow, monkeypatch):
    monkeypatch.setattr(job_server, "_LOST_S", -1)
    reason = r"does not answer \(reset\).*job may go on: `voxfleet logs job --address http://head:8265`"
    with pytest.raises(EndedError, match=reason) as caught:
        follow([requests.ConnectionError("reset")], [], "")
    assert caught.value.exit_code == 130


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (RuntimeError("Request failed with status code 404: no."), UserError, "knows no job"),
        (RuntimeError("Request failed with status code 400: bad id."), UserError, "refuses: .* bad id"),
        (FAULT, NoAnswerError, "has a fault"),
        (requests.Timeout("late"), NoAnswerError, "does not answer"),
    ],
)
def test_what_a_server_answers_is_told_apart(error, kind, reason):
    server = object.__new__(JobServer)
    server.address, server.at = "http://head:8265", ""

    def call(_):
        raise error

    with pytest.raises(kind, match=reason) as caught:
        server.ask(call, "job")
    assert type(caught.value) is kind


def test_an_address_that_takes_connections_and_says_nothing_is_one_line(monkeypatch):
    monkeypatch.setattr(job_server, "_REACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no job server answers at {address} .*timed out"):
            JobServer(ProfileConfig(address=address))


def test_a_server_that_falls_silent_after_its_first_answer_is_one_line(monkeypatch):
    def silent(*_, **__):
        raise requests.ReadTimeout("read timed out")

    monkeypatch.setattr(JobServer, "_probe", lambda *_: None)
    monkeypatch.setattr(job_server, "_Client", silent)
    with pytest.raises(UserError, match="http://head:8265: read timed out"):
        JobServer(ProfileConfig(address="http://head:8265"))


def test_a_token_that_cannot_be_read_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with pytest.raises(UserError, match=f"cannot read the cluster's token in {tmp_path}/token .*RAY_AUTH_TOKEN_PATH"):
        JobServer(ProfileConfig(address="http://head:8265"))
