"""A head that falls silent is said once, and so is its return."""

import contextlib
import queue
import socket

import pytest
from deadlines import extend

from voxfleet.engine import head


@pytest.fixture
def said(monkeypatch):
    lines = queue.Queue()
    monkeypatch.setattr(head, "say", lambda line, **_: lines.put(line))
    return lines


def test_a_head_that_goes_and_comes_back_is_said_once_each(said):
    server = socket.create_server(("127.0.0.1", 0), backlog=100)
    address = f"127.0.0.1:{server.getsockname()[1]}"
    with contextlib.ExitStack() as until_end, head.watched(address, every_s=0.01):
        taken, _ = server.accept()  # it was looked for, and is there
        taken.close()
        server.close()
        assert f"({address}) does not answer" in said.get(timeout=extend(60))
        until_end.enter_context(socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])), backlog=100))
        assert said.get(timeout=extend(60)) == f"the head ({address}) answers again"
    assert said.empty()


def test_a_moment_without_an_answer_is_not_said(said, monkeypatch):
    looks = iter([False, False, True, False, False, True])
    seen = queue.Queue()

    def look(address):
        answer = next(looks, None)
        seen.put(answer)
        return True if answer is None else answer

    monkeypatch.setattr(head, "_answers", look)
    with head.watched("nowhere:1", every_s=0.001):
        while seen.get(timeout=extend(60)) is not None:
            pass
    assert said.empty()
