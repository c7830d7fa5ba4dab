"""The job server of a running cluster: Ray's job API with time limits, our errors, and the token of the cluster.

Ray documents it as remote code execution for whoever reaches it, so every request carries the cluster's token.
"""

import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from voxfleet.config.submission import ProfileConfig
from voxfleet.errors import EndedError, NoAnswerError, UserError

for _handler in logging.getLogger("ray").handlers:
    _handler.setLevel(logging.ERROR)  # each upload and each end of a log is reported
_REACH_S, _ANSWER_S = 8.0, 20.0
_SILENT_S = 60.0  # of a log, until the state of its job is looked at
_LOST_S = 300.0  # until we give up a server that does not answer
_AGAIN_S = 1.0
T = TypeVar("T")
_PREFERRED = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # by Ray, to the address that it is given


class JobServer:
    """A connection to a job server.

    Raises:
        UserError: if nothing answers there, or it wants another token; within seconds.
    """

    def __init__(self, config: ProfileConfig) -> None:
        self.address = config.job_server
        self.at = f" --address {self.address}" if config.address else ""  # what other commands need, too
        headers = _authorization()
        self._probe(headers)
        preferred = {name: os.environ.pop(name) for name in _PREFERRED if name in os.environ}
        try:
            self.client = _Client(self.address, headers=headers)
        except (RuntimeError, ConnectionError, AuthenticationError, requests.RequestException) as error:
            raise UserError(f"{self.address}: {_line(error)}") from error
        finally:
            os.environ.update(preferred)

    def _probe(self, headers: dict[str, str]) -> None:
        try:
            answer = requests.get(f"{self.address}/api/version", headers=headers, timeout=_REACH_S)
        except requests.RequestException as error:
            raise UserError(
                f"no job server answers at {self.address} ({_reason(error)}); check --address, and that the SSH tunnel "
                "or the cluster is up"
            ) from error
        if answer.status_code in (401, 403):
            which = "another token" if headers else "a token"
            raise UserError(
                f"{self.address} wants {which}; let RAY_AUTH_TOKEN_PATH name a file with the cluster's token "
                "(on the head: ray get-auth-token)"
            )
        if answer.status_code != requests.codes.ok or "ray_version" not in answer.text:
            raise UserError(f"what answers at {self.address} is not Ray's job server (HTTP {answer.status_code})")

    def ask(self, call: Callable[..., T], name: str = "", **asked: Any) -> T:
        """What ``call``, a method of the client, says of the job ``name``, or of all.

        Raises:
            UserError: if there is no such job, or the server refuses.
            NoAnswerError: if it does not answer, or has a fault.
        """
        try:
            return call(*([name] if name else []), **asked)
        except RuntimeError as error:  # Ray's, for every answer that is no success
            status = re.search(r"status code (\d+)", str(error))
            if status and status[1] == "404":
                raise UserError(f"{self.address} knows no job {name}; `voxfleet jobs{self.at}` lists all") from error
            if status and status[1].startswith("4"):
                raise UserError(f"{self.address} refuses: {_line(error)[:300]}") from error
            raise NoAnswerError(f"{self.address} has a fault ({_line(error)[:300]}); try again") from error
        except (requests.RequestException, AuthenticationError) as error:
            raise NoAnswerError(f"{self.address} does not answer ({_reason(error)}); try again") from error

    def details(self, name: str) -> JobDetails:
        """What is known about a job; raises as ``ask`` does."""
        return self.ask(self.client.get_job_info, name)

    def log(self, name: str) -> str:
        """The log of a job so far; raises as ``ask`` does."""
        return self.ask(self.client.get_job_logs, name)

    def follow(self, name: str) -> None:
        """Print the log of a job until it ends.

        Raises:
            UserError: if there is no such job.
            EndedError: if it does not end well, or we stop looking: with its exit code, or that of Ctrl-C.
        """
        try:
            details = asyncio.run(self._print(name))
        except KeyboardInterrupt:
            raise EndedError(f"{name} goes on; {self.how_to_go_on(name)}", EndedError.INTERRUPTED) from None
        except NoAnswerError as error:
            raise EndedError(f"{error}; {name} may go on: {self.how_to_go_on(name)}", EndedError.INTERRUPTED) from error
        self._raise_unless_done(name, details)

    def how_to_go_on(self, name: str) -> str:
        """What can be done with a job that runs."""
        commands = (f"`voxfleet {command}{self.at}`" for command in (f"logs {name}", f"stop {name}", "jobs"))
        return "{} shows it, {} stops it, {} lists all".format(*commands)

    def _raise_unless_done(self, name: str, details: JobDetails) -> None:
        """Make the end of a job that of this process: an EndedError with its exit code, if that was not 0."""
        if details.status == JobStatus.STOPPED:
            raise EndedError(
                f"{name} was stopped; the same submission goes on from where it was", EndedError.INTERRUPTED
            )
        if details.status == JobStatus.FAILED:
            code = details.driver_exit_code
            why = f"exit code {code}" if code is not None else _last_line(details.message)
            raise EndedError(f"{name} ended with {why}; `voxfleet logs {name}{self.at}` shows its log again", code or 1)

    async def _print(self, name: str) -> JobDetails:
        """Print the log as it is written; what was printed is not printed again where the connection is made anew."""
        printed, answered = 0, time.monotonic()
        while True:
            try:
                details = await asyncio.to_thread(self.details, name)
                if JobStatus(details.status).is_terminal():
                    _show((await asyncio.to_thread(self.log, name))[printed:])
                    return details
                printed = await self._tail(name, printed)
                answered = time.monotonic()
            except NoAnswerError:
                if time.monotonic() - answered > _LOST_S:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def _tail(self, name: str, printed: int) -> int:
        """Print what the log has beyond its first ``printed`` characters, while more comes; how many are printed."""
        passed, log = 0, self.client.tail_job_logs(name)
        # closed in the middle, or silent: the state of the job says whether that is its end
        with contextlib.suppress(RuntimeError, aiohttp.ClientError, StopAsyncIteration, TimeoutError):
            while True:
                text = await asyncio.wait_for(anext(log), _SILENT_S)
                _show(text[max(printed - passed, 0) :])
                passed += len(text)
                printed = max(printed, passed)
        return printed


class _Client(JobSubmissionClient):
    """Ray's client, which waits for answers for ever, with a limit."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, **{"timeout": _ANSWER_S, **options})


def _authorization() -> dict[str, str]:
    """The header with the cluster's token, from where Ray looks for it; none where there is no token."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    try:
        if not token and file.is_file():
            token = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the cluster's token in {file} ({error}); let RAY_AUTH_TOKEN_PATH name it"
        ) from error
    return {"Authorization": f"Bearer {token.strip()}"} if token and token.strip() else {}


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _last_line(text: str | None) -> str:
    return (text or "no reason that Ray knows").strip().splitlines()[-1]


def _reason(error: Any) -> str:
    """The innermost cause of a failed request, which is all that a reader needs."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, "strerror", None) or _line(error) or type(error).__name__
