"""How a running cluster is reached, and what is done with the jobs on it."""

import os
import re
from dataclasses import dataclass, field, fields

from voxfleet.config.resources import ResourcesConfig
from voxfleet.errors import UserError
from voxfleet.tracking.base import TrackingConfig

PROFILE = "VOXFLEET_PROFILE"
_SECRET = re.compile(r"secret|password|passwd|(^|_)(token|key)(_|$)", re.IGNORECASE)
_LOGIN = re.compile(r"\w://[^/\s]+@")
_ID = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A cluster that is already running: keys of a profile file (--profile, or VOXFLEET_PROFILE) and of these commands.

    Args:
        address: its job server, http://HEAD:8265, or an SSH tunnel to it; null takes RAY_API_SERVER_ADDRESS.
        root: where relative paths of a job begin on the cluster: a folder that all nodes share, s3://... or gs://...;
            null lets the nodes' VOXFLEET_ROOT decide, without which a relative path is refused.
        env: environment variables of submitted jobs, such as MLFLOW_TRACKING_URI and AWS_ENDPOINT_URL. Whoever reaches
            the cluster can read them: what is secret is set on its nodes.
    """

    address: str | None = None
    root: str | None = None
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.address is not None and not re.match(r"https?://[^/]", self.address):
            raise ValueError(f"address is {self.address!r}; it must be that of a job server, such as http://HEAD:8265")
        if _LOGIN.search(self.address or ""):
            raise ValueError(
                "address holds a user or password; RAY_AUTH_TOKEN_PATH names the file of the cluster's token"
            )
        if self.root is not None and not re.match(r"/|[a-z][a-z0-9+.-]*://.", self.root):
            raise ValueError(f"root is {self.root!r}; it must be a full path, s3://... or gs://...")
        for name, value in self.env.items():
            if _SECRET.search(name) or _LOGIN.search(value):
                raise ValueError(f"env.{name} looks secret, and a job's record shows it; set it on the nodes instead")

    @property
    def job_server(self) -> str:
        """The address that is meant.

        Raises:
            UserError: if there is none.
        """
        of_ray = os.environ.get("RAY_ADDRESS", "")
        address = self.address or os.environ.get("RAY_API_SERVER_ADDRESS") or (of_ray if "http" in of_ray else None)
        if not address:
            raise UserError(f"no cluster is named; give --address http://HEAD:8265, or a profile ({PROFILE}) with it")
        return address.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(ProfileConfig):
    """Run a job on a cluster: `voxfleet submit JOB --address http://HEAD:8265 --config FILE --key.sub value`.

    The package and the configuration are sent, no data. All other keys are those of the job.

    Args:
        follow: show the job's log, and end with its exit code; Ctrl-C leaves the job running.
        id: its name on the cluster; null makes one of the job and the time.
    """

    follow: bool = True
    id: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_id(self.id)


@dataclass(frozen=True, kw_only=True)
class JobsConfig(ProfileConfig):
    """List the jobs that were submitted to a cluster."""


@dataclass(frozen=True, kw_only=True)
class LogsConfig(ProfileConfig):
    """Show the log of a job on a cluster, and end with the job's exit code.

    Args:
        id: the job's name there, as `voxfleet jobs` lists it.
        follow: wait for the end of the job; Ctrl-C leaves it running.
    """

    id: str
    follow: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_id(self.id)


@dataclass(frozen=True, kw_only=True)
class StopConfig(ProfileConfig):
    """Stop a job on a cluster, as Ctrl-C would; the same submission goes on from where it was.

    Args:
        id: the job's name there, as `voxfleet jobs` lists it.
    """

    id: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_id(self.id)


def check_id(name: str | None) -> None:
    """Make sure that ``name`` can be a part of an address.

    Raises:
        ValueError: if it cannot.
    """
    if name is not None and not _ID.fullmatch(name):
        raise ValueError(f"id is {name!r}; it must be of letters, digits, '-', '_' and '.'")


def split_arguments(arguments: list[str], cls: type = SubmitConfig) -> tuple[list[str], list[str]]:
    """``arguments`` of `voxfleet submit JOB`: those of the submission, ``cls``, and those of the job."""
    own = {f"--{name}" for name in ("profile", *(f.name for f in fields(cls)))}
    mine: list[str] = []
    of_job: list[str] = []
    target = of_job
    for argument in arguments:
        if argument.startswith("--"):
            target = mine if argument.partition("=")[0].partition(".")[0] in own else of_job
        target.append(argument)
    return mine, of_job


def with_profile(arguments: list[str]) -> list[str]:
    """``arguments`` of a command for clusters, with the profile file that they or the environment name as --config."""
    renamed = [re.sub(r"^--profile(=|$)", r"--config\1", argument) for argument in arguments]
    there = os.environ.get(PROFILE)
    return ["--config", there, *renamed] if there and renamed == arguments else renamed


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check, on every node of the cluster, what jobs need of it, and say how to mend what is missing.

    Args:
        storage: folders and buckets that jobs read and write; with none VOXFLEET_ROOT, where that is set.
        disk_gb: how much each node should have free for Ray's files, in GB.
        expected: versions of packages, by name; null takes those of the machine that asks.
        resources: where the cluster is.
        tracking: the MLflow store that jobs use.
    """

    storage: tuple[str, ...] = ()
    disk_gb: float = 10.0
    expected: dict[str, str] | None = None
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not self.disk_gb >= 0:
            raise ValueError(f"disk_gb is {self.disk_gb}; it must be 0 or more")
