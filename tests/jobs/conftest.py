"""The whole path at a tiny size, run once by the command line's own entry, on the shared Ray session."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from voxfleet import storage
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
CONFIGS = Path(__file__).parents[2] / "configs"


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
        return [job, "--config", str(CONFIGS / job / "demo.yaml"), *self.smaller(job), *more]

    def upload(self, root, *names):
        """Copy these outputs of the demo to the same places below ``root``, a bucket."""
        for path in (path for name in names for path in (self.demo / name).rglob("*") if path.is_file()):
            storage.write_bytes(f"{root}/{path.relative_to(self.root)}", path.read_bytes())

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


@pytest.fixture(scope="session")
def symmetric(workspace, tmp_path_factory):
    """The workspace's volumes, as of a cohort in which a mirrored head is one of the same class."""
    folder = Path(shutil.copytree(workspace.demo / "volumes", tmp_path_factory.mktemp("symmetric") / "volumes"))
    document = json.loads((folder / "manifest.json").read_text())
    document["geometry"]["mirror_axis"] = 0
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


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
