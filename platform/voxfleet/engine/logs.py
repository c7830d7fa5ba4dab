"""The logs command: the log of a job on a cluster."""

from voxfleet.config.submission import LogsConfig
from voxfleet.engine.console import show
from voxfleet.engine.job_server import JobServer


def run(config: LogsConfig) -> None:
    """Show the log, and follow it.

    Raises:
        UserError: if the cluster cannot be reached, or does not know the job.
        EndedError: if the job does not end well, or is left running.
    """
    server = JobServer(config)
    server.details(config.id)
    if config.follow:
        server.follow(config.id)
    else:
        show(server.log(config.id).splitlines())
