"""The jobs command: what was submitted to a cluster."""

import time

from voxfleet.config.submission import JobsConfig
from voxfleet.engine.console import duration, show
from voxfleet.engine.job_server import JobServer
from voxfleet.tracking.outbox import masked


def run(config: JobsConfig) -> None:
    """List the jobs, the newest first.

    Raises:
        UserError: if the cluster cannot be reached.
    """
    server = JobServer(config)
    found = [job for job in server.ask(server.client.list_jobs) if job.submission_id]
    rows = [("JOB", "STATE", "EXIT", "BEGUN", "TOOK", "COMMAND")]
    for job in sorted(found, key=lambda job: job.start_time or 0, reverse=True):
        began, ended = (moment / 1000 if moment else time.time() for moment in (job.start_time, job.end_time))
        code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(began))
        state = job.status.value.lower()
        rows.append((job.submission_id, state, code, when, duration(ended - began), masked(job.entrypoint)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    show(lines if found else [f"{server.address} knows no jobs"])
