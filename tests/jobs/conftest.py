"""The whole path at a tiny size, run once by the command line's own entry, on the shared Ray session."""

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
    "generate": ["--campaign.samples", "3", "--sampler.steps", "4", "--batch_size", "2"],
    "evaluate": [],
}
PATHS = ("output", "package", "data", "autoencoder", "model", "synthetic", "volumes", "page")


@dataclass(frozen=True)
class Workspace:
    """A folder in which the demo's configurations run at a tiny size."""

    root: Path
    configs: Path

    @property
    def demo(self) -> Path:
        """The folder that holds all outputs."""
        return self.root / "demo"

    def arguments(self, job, *more):
        """The command line of ``job``: the demo's configuration, made tiny, and ``more``."""
        return [job, "--config", str(self.configs / job / "demo.yaml"), *TINY[job], *more]

    def run(self, job, *more):
        """Run ``job`` in this process, in the workspace; returns the exit code."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.root)
            return main(self.arguments(job, *more))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, ray_session):
    """All jobs of the demo, done."""
    space = Workspace(tmp_path_factory.mktemp("workspace"), Path(__file__).parents[2] / "configs")
    for job in TINY:
        assert space.run(job) == 0, job
    return space


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
