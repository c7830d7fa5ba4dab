"""The whole path on one machine, from a simulated cohort to synthetic volumes: what `make demo` runs.

Each stage is the job that `voxfleet STAGE --config configs/STAGE/demo.yaml` runs; here they share one Ray session.
Stages that are complete are passed over, so the same command continues after an interruption.

`python jobs/demo.py quick` runs the same stages in the folder demo-quick, with fewer people and so little training that
its volumes are of no quality: it shows that everything works here.
"""

import os
import sys
from pathlib import Path

from voxfleet.cli import guarded, parse, run_job
from voxfleet.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ("cohort", "prepare", "train-vae", "encode", "train", "generate", "evaluate")
QUICK = {
    "cohort": ["--subjects", "24"],
    "prepare": ["--split.train", "0.5", "--split.val", "0.25", "--split.test", "0.25"],
    "train-vae": ["--trainer.epochs", "15"],
    "train": ["--trainer.epochs", "40", "--samples.every", "40"],
    "generate": ["--campaign.samples", "4", "--sampler.steps", "10", "--gate.limits", "false"],
    "evaluate": ["--repeats", "20", "--features.slices", "2", "--commands", "[DEMO=quick make demo]"],
}


def main() -> None:
    """Run all stages.

    Raises:
        UserError: if the argument is not "quick".
    """
    size = sys.argv[1] if len(sys.argv) > 1 else ""
    if size not in ("", "quick"):
        raise UserError(f"DEMO is {size!r}; leave it out for the whole demo, or set it to quick")
    folder, more = (Path("demo-quick"), QUICK) if size else (Path(), {})
    folder.mkdir(exist_ok=True)
    os.chdir(folder)  # where the paths of the configurations begin
    configs = {
        stage: parse(stage, ["--config", str(CONFIGS / stage / "demo.yaml"), *more.get(stage, [])]) for stage in STAGES
    }
    from voxfleet.engine.cluster import session

    with session(configs["cohort"].resources):
        for stage, config in configs.items():
            command = ["$ voxfleet", stage, f"--config configs/{stage}/demo.yaml", *more.get(stage, [])]
            print(*command, file=sys.stderr)
            run_job(stage, config)
    page, volumes = folder / configs["evaluate"].page, folder / configs["generate"].output
    print(f"Open {page} in a browser; the volumes are in {volumes}.")


if __name__ == "__main__":
    sys.exit(guarded(main))
