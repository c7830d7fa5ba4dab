"""The whole path at a tiny size, run once by the command line's own entry, on the shared Ray session."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from voxfleet.cli import main

TINY = {
    "cohort": ["--subjects", "12", "--simulation.spacing_mm", "8"],
    "prepare": [
        *["--preprocess.spacing_mm", "[10,10,10]", "--preprocess.shape", "[16,20,16]"],
        *["--split.train", "0.5", "--split.val", "0.25", "--split.test", "0.25", "--subjects_per_shard", "5"],
    ],
    "train-vae": [
        *["--model.channels", "[4,8]", "--model.num_res_blocks", "[1,1]", "--model.norm_num_groups", "4"],
        *["--trainer.epochs", "3", "--trainer.batch_size", "4"],
    ],
    "encode": [],
    "train": [
        *["--model.input_size", "[8,10,8]", "--model.hidden_size", "48", "--model.depth", "2"],
        *["--trainer.epochs", "3", "--trainer.batch_size", "4"],
    ],
    "generate": [
        *["--campaign.samples", "3", "--sampler.steps", "4", "--batch_size", "2"],
        *["--gate.limits", "false"],  # three epochs teach nobody what a head is
    ],
    "evaluate": [
        *["--release.enforce", "false", "--repeats", "20", "--features.efficientnet", "false"],  # few and poor volumes
        *["--resources.workers", "1"],
    ],
}
EXTRA = {  # jobs that are no part of the path
    "decode": [],
    "classify": [
        *["--model.width", "0.25", "--model.depth", "0.1", "--training.epochs", "1"],
        *["--folds", "2", "--mix", "[50]"],
    ],
    "train-segmenter": ["--model.channels", "[4,8]", "--training.epochs", "2", "--resources.cpus_per_worker", "1"],
    "latents": ["--points", "3", "--volumes", "2", "--umap", "false"],
    "interpolate": ["--sampler.steps", "4", "--points", "3"],
    "tune": [
        *["--model.input_size", "[8,10,8]", "--model.hidden_size", "24", "--model.num_heads", "2"],
        *["--trainer.batch_size", "4", "--search.max_samples", "54", "--search.trials", "4"],
        "--search.space",
        '{"model.window_size": {"choice": [[1,1,1], [2,2,2], [3,3,3], null]}, "model.depth": {"choice": [1, 2]}}',
    ],
}
_DEADLINE_S = 240
PATHS = ("output", "package", "data", "autoencoder", "model", "synthetic", "volumes", "page", "labels")


CONFIGS = Path(__file__).parents[2] / "configs"


def tiny(job):
    """The command line of ``job``: the demo's configuration, made tiny."""
    return [job, "--config", str(CONFIGS / job / "demo.yaml"), *{**TINY, **EXTRA}[job]]


@pytest.fixture(scope="session")
def demo_arguments():
    """The command line of each job of the demo, made tiny, in their order."""
    return {job: tiny(job) for job in TINY}


@dataclass(frozen=True)
class Workspace:
    """A folder in which the demo's configurations run at a tiny size."""

    root: Path
    configs: Path = CONFIGS

    @property
    def demo(self) -> Path:
        """The folder that holds all outputs."""
        return self.root / "demo"

    def smaller(self, job):
        """What makes ``job`` tiny, beside any configuration."""
        return {**TINY, **EXTRA}.get(job, [])

    def arguments(self, job, *more):
        """The command line of ``job``: the demo's configuration, made tiny, and ``more``."""
        return [*tiny(job), *more]

    def run(self, job, *more):
        """Run ``job`` in this process, in the workspace; returns the exit code."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.root)
            return main(self.arguments(job, *more))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, ray_session):
    """All jobs of the demo, done."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    for job in TINY:
        assert space.run(job) == 0, job
    return space


@dataclass(frozen=True)
class Processes:
    """Jobs of a workspace as processes of their own, which write to ``log``."""

    workspace: Workspace
    log: Path

    @contextlib.contextmanager
    def started(self, job, *more):
        """The job in a group of its own, which ends with the block."""
        with self.log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "voxfleet.cli", *self.workspace.arguments(job, *more)],
                cwd=self.workspace.root,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
            )
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def interrupt_when(self, happened, number, job, *more):
        """Start the job, send it the signal as soon as ``happened()``, and return its exit code."""
        with self.started(job, *more) as process:
            deadline = time.monotonic() + _DEADLINE_S
            while not happened():
                assert process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.02)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does
            else:
                process.send_signal(number)
            return process.wait(timeout=60)

    def finish(self, job, *more):
        """Run the job to its end."""
        with self.started(job, *more) as process:
            assert process.wait(timeout=_DEADLINE_S) == 0, self.log.read_text()


@pytest.fixture
def processes(workspace, tmp_path):
    """Runs jobs as processes."""
    return Processes(workspace, tmp_path / "log")


@pytest.fixture
def fails(capsys):
    """Run the command line; returns the one line of the error."""

    def run(call, *arguments):
        capsys.readouterr()
        assert call(*arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("voxfleet: error: ")]
        assert len(errors) == 1
        assert lines[-1] == errors[0]
        assert not any("Traceback" in line for line in lines)
        return errors[0]

    return run
