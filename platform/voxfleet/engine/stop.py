"""The stop command: ends a job on a cluster."""

from voxfleet.config.submission import StopConfig
from voxfleet.engine.console import say
from voxfleet.engine.job_server import JobServer


def run(config: StopConfig) -> None:
    """Ask the job to end, as Ctrl-C would; Ray kills it where it does not.

    Raises:
        UserError: if the cluster cannot be reached, or does not know the job.
    """
    server = JobServer(config)
    stopped = server.ask(server.client.stop_job, config.id)
    state = "is told to stop" if stopped else f"is not running ({server.details(config.id).status.value.lower()})"
    say(f"{config.id} {state}")
