"""The submit command: a job of this version runs on a cluster, whether or not the package is installed there."""

import dataclasses
import secrets
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import voxfleet
from voxfleet import storage
from voxfleet.config.submission import PROFILE, SubmitConfig
from voxfleet.engine.console import say
from voxfleet.engine.job_server import JobServer
from voxfleet.engine.output import as_document
from voxfleet.errors import UserError
from voxfleet.tracking.outbox import masked

_CONFIG = "job.yaml"
_ENVIRONMENT = {
    "RAY_JOB_STOP_SIGNAL": "SIGINT",  # a stopped job ends as after Ctrl-C,
    "RAY_JOB_STOP_WAIT_TIME_S": "60",  # and has the time to say so in its record
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's C++ parts write warnings to the log
    PROFILE: "",  # the node's own, by which doctor would send itself on
}


def submit(config: SubmitConfig, job: str, job_config: Any) -> None:
    """Run ``job`` with ``job_config`` on the cluster, and show its log.

    Raises:
        UserError: if the cluster cannot be reached, or the configuration holds a password.
        EndedError: if the job does not end well, or is left running.
    """
    document = _document(job_config, config.root)
    server = JobServer(config)
    name = config.id or f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _CONFIG).write_text(yaml.safe_dump(document, sort_keys=False))
        server.ask(
            server.client.submit_job,
            entrypoint=shlex.join(["python", "-m", "voxfleet.cli", job, "--config", _CONFIG]),
            submission_id=name,
            runtime_env=runtime_env(config, folder),
            metadata={"job": job, "voxfleet": voxfleet.__version__},
        )
    if not config.follow:
        say(f"{name} is submitted to {server.address}; {server.how_to_go_on(name)}")
        return
    say(f"{name} runs on {server.address}; Ctrl-C leaves it running")
    server.follow(name)


def _document(job_config: Any, root: str | None) -> dict[str, Any]:
    """The configuration as its file will hold it, on a cluster whose users can all read it."""
    document = as_document(job_config)
    if tracking := getattr(job_config, "tracking", None):
        if tracking.uri and masked(tracking.uri) != tracking.uri:
            raise UserError("tracking.uri holds a password, which others could read; set it on the nodes instead")
        if root and not storage.is_local(root) and (tracking.uri or "").startswith("sqlite:"):
            raise UserError(
                f"tracking.uri is {tracking.uri}, a file, which cannot lie in {root}; give --tracking.uri http://MLFLOW:5000"
            )
        document["tracking"] = dataclasses.asdict(tracking)
    return document


def runtime_env(config: SubmitConfig, folder: str) -> dict[str, Any]:
    """What Ray brings to the cluster: the package, wherever it lies here, and the ``folder`` with the configuration."""
    env = {**_ENVIRONMENT, **config.env}
    if config.root:
        env[storage.ROOT] = config.root
    package = str(Path(voxfleet.__file__).parent)
    return {"py_modules": [package], "working_dir": folder, "excludes": ["__pycache__"], "env_vars": env}
