"""The command line: ``voxfleet JOB --config FILE --key.sub value``."""

import dataclasses
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from voxfleet import __version__
from voxfleet.errors import UserError, VoxfleetError

INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """Where a job's code is: imported only when it is asked for.

    Attributes:
        config: its configuration's class in ``config.jobs``, or in another module of ``config``, which is then named.
        engine: its module of ``engine``.
        help: what it does.
        positional: a key that may be given without its name, as the first argument.
    """

    config: str
    engine: str
    help: str
    positional: str = ""


JOBS = {
    "cohort": Job("CohortConfig", "cohort", "simulate a BIDS dataset of healthy and epileptic brains"),
    "prepare": Job("PrepareConfig", "prepare", "turn NIfTI images into volume shards"),
    "train-vae": Job("TrainVaeConfig", "train_vae", "train an autoencoder on volume shards"),
    "import-vae": Job("ImportVaeConfig", "import_vae", "package an autoencoder that was trained elsewhere"),
    "encode": Job("EncodeConfig", "encode", "turn volume shards into latent shards"),
    "import-latents": Job("ImportLatentsConfig", "import_latents", "turn latents made elsewhere into latent shards"),
    "train": Job("TrainConfig", "train", "train a DiT3D on latent shards"),
    "tune": Job("TuneConfig", "tune", "search what to train: window size, depth, and any other key of train"),
    "generate": Job("generation.GenerateConfig", "generate", "generate synthetic volumes as a BIDS derivative dataset"),
    "regenerate": Job(
        "generation.RegenerateConfig", "regenerate", "make one sample of a campaign again, and compare it", "sample"
    ),
    "decode": Job("generation.DecodeConfig", "decode", "decode latent shards to volumes"),
    "interpolate": Job("generation.InterpolateConfig", "interpolate", "show the way between two samples or subjects"),
    "train-segmenter": Job(
        "segmentation.TrainSegmenterConfig", "train_segmenter", "train a segmenter of the hippocampi on label maps"
    ),
    "latents": Job("visualisation.LatentsConfig", "latents", "show what latents are like: channels, maps, autoencoder"),
    "evaluate": Job(
        "evaluation.EvaluateConfig", "evaluate", "compare synthetic with real volumes: figures, gate, page"
    ),
    "classify": Job(
        "classification.ClassifyConfig", "classify", "train classifiers on real and synthetic volumes, test on people"
    ),
    "model-summary": Job("ModelSummaryConfig", "model_summary", "show a DiT3D's tokens, windows, parameters and FLOPs"),
    "benchmark": Job("BenchmarkConfig", "benchmark", "measure how fast networks run on this device"),
    "scale": Job("scaling.ScaleConfig", "scale", "measure what the machinery costs, and simulate many GPUs with that"),
    "doctor": Job("submission.DoctorConfig", "doctor", "check what jobs need, on every node of a cluster"),
}
SUBMIT = "submit"
CLUSTER = {
    SUBMIT: Job("submission.SubmitConfig", "submit", "run a job on a cluster: voxfleet submit JOB --address URL ..."),
    "jobs": Job("submission.JobsConfig", "jobs", "list the jobs on a cluster"),
    "logs": Job("submission.LogsConfig", "logs", "show the log of a job on a cluster: voxfleet logs ID", "id"),
    "stop": Job("submission.StopConfig", "stop", "stop a job on a cluster: voxfleet stop ID", "id"),
}
DOCTOR = "doctor"


def config_class(job: str) -> type:
    """The configuration dataclass of a job."""
    module, _, name = {**JOBS, **CLUSTER}[job].config.rpartition(".")
    return getattr(importlib.import_module(f"voxfleet.config.{module or 'jobs'}"), name)


def parse(job: str, arguments: list[str]) -> Any:
    """The configuration of ``job`` from command-line arguments.

    Raises:
        UserError: if a key is unknown or a value is not allowed.
        SystemExit: after --help or --print_config.
    """
    from voxfleet.config.parsing import parse_config

    return parse_config(config_class(job), job, arguments)


def run_job(job: str, config: Any) -> None:
    """Run a job to its end."""
    from voxfleet.engine import console

    console.begin(job)
    _engine({**JOBS, **CLUSTER}[job]).run(config)


def _engine(job: Job) -> Any:
    return importlib.import_module(f"voxfleet.engine.{job.engine}")


def submit(arguments: list[str]) -> None:
    """Run the job that ``arguments`` begin with on a cluster; its configuration is checked here first."""
    from voxfleet.config.submission import split_arguments, with_profile

    job = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    mine, of_job = split_arguments(arguments[1:] if job else arguments)
    if not job:
        parse(SUBMIT, with_profile(arguments))  # --help
        raise UserError("which job? voxfleet submit JOB --address http://HEAD:8265 --config FILE ...")
    if job not in JOBS:
        raise UserError(f"unknown job {job!r}; the jobs are {', '.join(JOBS)}")
    job_config = parse(job, _named(JOBS[job], of_job))
    if job == DOCTOR and job_config.expected is None:
        job_config = dataclasses.replace(job_config, expected=_engine(JOBS[DOCTOR]).versions())
    _engine(CLUSTER[SUBMIT]).submit(parse(SUBMIT, with_profile(mine)), job, job_config)


def _of_a_cluster(arguments: list[str]) -> bool:
    """Whether ``arguments``, or a profile, name a cluster that is not joined but sent to."""
    from voxfleet.config.submission import PROFILE, split_arguments

    return bool(os.environ.get(PROFILE) or split_arguments(arguments)[0])


def _named(job: Job, arguments: list[str]) -> list[str]:
    """``arguments`` with the name of the first one, where the job knows what it is."""
    if job.positional and arguments and not arguments[0].startswith("-"):
        return [f"--{job.positional}", *arguments]
    return arguments


def _look(command: str, arguments: list[str]) -> None:
    """Run a command for clusters."""
    from voxfleet.config.submission import with_profile

    run_job(command, parse(command, with_profile(_named(CLUSTER[command], arguments))))


def usage() -> str:
    """What `voxfleet --help` prints."""

    def listed(jobs: dict[str, Job]) -> list[str]:
        return [f"  {name:<15} {job.help}" for name, job in jobs.items()]

    return "\n".join(
        [
            "usage: voxfleet JOB --config FILE [--key.sub value ...]",
            "",
            "jobs:",
            *listed(JOBS),
            "",
            "on a running cluster:",
            *listed(CLUSTER),
            "",
            "voxfleet JOB --help explains every key; --print_config prints the configuration that would run.",
            "Exit codes: 0 done, 1 our bug, 2 the input is wrong, 3 what was made is not what is allowed,",
            "4 work is missing (run it again), 130 interrupted.",
        ]
    )


def main(arguments: list[str]) -> int:
    """Run ``arguments`` (without the program's name) and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"voxfleet {__version__}")
        return 0
    if not os.path.isdir(os.curdir):  # PyTorch and Ray end with errors of their own there
        return _fail("the working folder was removed; change to another one", 2)
    job, rest = arguments[0], arguments[1:]
    if job == SUBMIT:
        return guarded(lambda: submit(rest))
    if job == DOCTOR and _of_a_cluster(rest):
        return guarded(lambda: submit(arguments))
    if job in CLUSTER:
        return guarded(lambda: _look(job, rest))
    if job not in JOBS:
        return _fail(f"unknown job {job!r}; the jobs are {', '.join([*JOBS, *CLUSTER])}", 2)
    return guarded(lambda: run_job(job, parse(job, _named(JOBS[job], rest))))


def guarded(work: Callable[[], None]) -> int:
    """Do ``work`` and return the exit code; what goes wrong becomes one line."""
    try:
        work()
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to continue", INTERRUPTED)
    except VoxfleetError as error:
        return _fail(str(error), error.exit_code)
    except Exception:
        from voxfleet.engine import console

        if console.is_structured():
            console.say("a bug", level="error", traceback=traceback.format_exc())
        else:
            traceback.print_exc()
        return _fail(f"this is a bug of voxfleet {__version__}: please report it with the lines above", 1)
    return 0


def _fail(message: str, code: int) -> int:
    from voxfleet.engine import console

    line = re.sub(r"\s*\n\s*", " ", message.strip())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)  # it may quote what is in a file
    if console.is_structured():
        console.say(line, level="error", exit_code=code)
    else:
        print(f"voxfleet: error: {line}" if code != INTERRUPTED else f"\nvoxfleet: {line}", file=sys.stderr)
    return code


def entry() -> None:
    """The installed command."""
    if os.environ.get("RAY_JOB_STOP_SIGNAL") == "SIGINT":
        # so a job server stops us, which ignores that signal, as all that it starts, if a shell's "&" started it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    entry()
