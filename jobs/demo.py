"""The whole path on one machine, from a simulated cohort to synthetic volumes: what `make demo` runs.

Each stage is the job that `voxfleet STAGE --config configs/STAGE/demo.yaml` runs; here they share one Ray session.
Stages that are complete are passed over, so the same command continues after an interruption.
"""

import sys

from voxfleet.cli import guarded, parse, run_job

STAGES = ("cohort", "prepare", "train-vae", "encode", "train", "generate", "evaluate")


def main() -> None:
    """Run all stages."""
    configs = {stage: parse(stage, ["--config", f"configs/{stage}/demo.yaml"]) for stage in STAGES}
    from voxfleet.engine.cluster import session

    with session(configs["cohort"].resources):
        for stage, config in configs.items():
            print(f"$ voxfleet {stage} --config configs/{stage}/demo.yaml", file=sys.stderr)
            run_job(stage, config)
    print(f"Open {configs['evaluate'].page} in a browser; the volumes are in {configs['generate'].output}.")


if __name__ == "__main__":
    sys.exit(guarded(main))
