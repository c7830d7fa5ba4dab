"""Following a job over a connection that breaks."""

from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobStatus

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
        server.address, server.client = "http://head:8265", Client(*answers)
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
    with pytest.raises(EndedError, match=r"does not answer \(reset\).*job may go on: `voxfleet logs job`") as caught:
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
    server.address = "http://head:8265"

    def call(_):
        raise error

    with pytest.raises(kind, match=reason) as caught:
        server.ask(call, "job")
    assert type(caught.value) is kind
