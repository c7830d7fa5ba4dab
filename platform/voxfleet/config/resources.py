"""Where a job runs, and how much of a cluster it takes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """Where the job runs.

    Args:
        address: a Ray cluster (auto, HOST:6379); null joins the cluster that RAY_ADDRESS names, such as that of
            `ray job submit`, or else starts a private one on this machine.
        workers: training workers, or actors that hold a model. Jobs of plain tasks use what the cluster has.
        cpus_per_worker: CPUs, and PyTorch threads, of each worker.
        gpus_per_worker: GPUs of each worker, may be a fraction; null takes 1 where the cluster has GPUs or
            its autoscaler brings some, else 0.
        min_workers: elastic: a job begins with room for this many, and works with as many of the workers as there are;
            a training goes on with this many when nodes are lost; null needs all of them.
        wait_s: how long to wait for room that others hold, or that an autoscaler brings, in seconds.
    """

    address: str | None = None
    workers: int = 2
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None
    min_workers: int | None = None
    wait_s: int = 50

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker}; it must be 0 or more, or null")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"min_workers is {self.min_workers}; it must be 1 to {self.workers} (workers), or null")
        if self.wait_s < 0:
            raise ValueError(f"wait_s is {self.wait_s}; it must be 0 or more")
