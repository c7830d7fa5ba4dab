"""The doctor command: what a cluster lacks for our jobs, seen from its workers, and how to mend it."""

import importlib.metadata
import os
import platform
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from voxfleet import storage
from voxfleet.config.submission import DoctorConfig
from voxfleet.engine.cluster import gpus_to_come, session
from voxfleet.engine.console import show
from voxfleet.errors import UserError
from voxfleet.tracking.base import TrackingConfig
from voxfleet.tracking.record import check_store

PACKAGES = (
    *("einops", "isal", "jinja2", "jsonargparse", "matplotlib", "mlflow", "monai", "nibabel", "numpy", "optuna"),
    *("pyarrow", "pyyaml", "ray", "safetensors", "scikit-learn", "scipy", "torch"),
)
_ANSWER_S = 240.0  # longer than storage takes to say that nothing answers
_CLOCK_S = 5.0
_SHARED = "/dev/shm"
_MORE_DISK = "make room there, or start Ray with --temp-dir elsewhere"
_MORE_SHARED = "start the container with --shm-size, or mount an emptyDir of medium Memory there"
OK, WARNING, FAILURE = "ok", "warn", "FAIL"


class Finding(NamedTuple):
    """What one check found: ``state`` is ok, warn or FAIL."""

    state: str
    check: str
    text: str


@dataclass(frozen=True)
class Asked:
    """What a node is checked for."""

    versions: Mapping[str, str]
    folders: tuple[str, ...]
    disk_gb: float
    tracking: TrackingConfig
    gpus: int
    object_store: float


def versions() -> dict[str, str]:
    """Versions of the packages that we use and that are installed here, and Python's."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run(config: DoctorConfig) -> None:
    """Check every node, and show what was found.

    Raises:
        UserError: if something must be mended.
    """
    root = os.environ.get(storage.ROOT)
    folders = tuple(map(storage.absolute, config.storage or ((root,) if root else ())))
    with session(config.resources):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        found = list(_of_nodes(nodes, config, folders))
        to_come = gpus_to_come() - sum(node["Resources"].get("GPU", 0) for node in nodes)
    findings = merged(found)
    if to_come > 0:
        why = f"{to_come:g} that the autoscaler may bring were not looked at; look again while a job holds some"
        findings.append(Finding(WARNING, "GPUs", why))
    show(f"{finding.state:<4}  {finding.check:<14}  {finding.text}" for finding in findings)
    if failed := sum(finding.state == FAILURE for finding in findings):
        raise UserError(
            f"{failed} of {len(findings)} checks failed; mend them as the lines above say, then run this again"
        )


def _of_nodes(
    nodes: list[dict[str, Any]], config: DoctorConfig, folders: tuple[str, ...]
) -> Iterator[tuple[str, list[Finding]]]:
    """The findings of each node, by its address."""
    expected = config.expected if config.expected is not None else versions()
    began, waiting = time.time(), {}
    for node in nodes:
        gpus = int(node["Resources"].get("GPU", 0))
        store = node["Resources"].get("object_store_memory", 0)
        asked = Asked(expected, folders, config.disk_gb, config.tracking, gpus, store)
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = _examine.options(scheduling_strategy=there, num_gpus=min(gpus, 1))
        waiting[task.remote(asked)] = node["NodeManagerAddress"]
    for ref, address in waiting.items():
        try:
            findings, clock = ray.get(ref, timeout=max(began + _ANSWER_S - time.time(), 1))
        except ray.exceptions.GetTimeoutError:
            reason = f"no answer within {_ANSWER_S:g} s: all its GPUs are taken, no worker starts, or storage is silent"
            yield address, [Finding(FAILURE, "worker", f"{reason}; see Ray's logs on that node")]
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            yield address, [Finding(FAILURE, "worker", f"cannot run our code ({reason}); see Ray's logs on that node")]
        else:
            yield address, [*findings, clock_finding(clock, began, time.time())]


@ray.remote(num_cpus=0)
def _examine(asked: Asked) -> tuple[list[Finding], float]:
    return examine(asked), time.time()


def examine(asked: Asked) -> list[Finding]:
    """All checks of the node that this runs on, but that of its clock."""
    folder = ray._private.worker._global_node.get_session_dir_path()
    return [
        *version_findings(asked.versions, versions()),
        *_gpu_findings(asked.gpus),
        *map(storage_finding, asked.folders),
        tracking_finding(asked.tracking),
        room_finding("disk", folder, shutil.disk_usage(folder).free, asked.disk_gb * 1e9, _MORE_DISK),
        room_finding("shared memory", _SHARED, shutil.disk_usage(_SHARED).total, asked.object_store, _MORE_SHARED),
    ]


def version_findings(expected: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Finding]:
    """Packages of this node beside those of the machine that asks; what follows the second dot is passed over."""

    def short(version: str) -> str:
        return ".".join(version.split("+")[0].split(".")[:2])

    missing = [name for name in expected if name not in found]
    if missing:
        what = " ".join(f"{name}=={expected[name].split('+')[0]}" for name in missing)
        yield Finding(FAILURE, "packages", f"missing: {', '.join(missing)}; pip install {what}, or use our image")
    others = [name for name in expected if name in found and short(found[name]) != short(expected[name])]
    for name in others:
        severe = FAILURE if name in ("ray", "python") else WARNING
        yield Finding(severe, name, f"{found[name]} instead of {expected[name]}; constraints.txt pins what is tested")
    if not missing and not others:
        yield Finding(
            OK, "packages", f"Python {found['python']}, Ray {found['ray']}, PyTorch {found['torch']}, as wanted"
        )


def _gpu_findings(there: int) -> Iterator[Finding]:
    import torch  # here, as it takes seconds, which the other commands need not wait for

    if not there:
        yield Finding(OK, "GPUs", "none; workers run on CPUs")
    elif not torch.cuda.is_available():
        why = "PyTorch is a CPU build" if torch.version.cuda is None else "PyTorch cannot use them: update the driver"
        yield Finding(FAILURE, "GPUs", f"Ray counts {there}, but {why}; install a CUDA build of PyTorch on the nodes")
    else:
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        yield Finding(
            OK, "GPUs", f"{there} x {torch.cuda.get_device_name(0)}, {memory:.0f} GB, CUDA {torch.version.cuda}"
        )


def storage_finding(folder: str) -> Finding:
    """Whether this node can write into ``folder``, read that again, and remove it."""
    file, text = storage.join(folder, f".voxfleet-doctor-{uuid.uuid4().hex}"), uuid.uuid4().bytes
    began = time.monotonic()
    try:
        storage.write_bytes(file, text)
        same = storage.read_bytes(file) == text
        storage.remove(file)
    except UserError as error:
        return Finding(FAILURE, "storage", str(error))
    if not same:
        return Finding(FAILURE, "storage", f"{folder} gives back something else than was written; use another")
    return Finding(OK, "storage", f"{folder}: written, read and removed in {time.monotonic() - began:.2g} s")


def tracking_finding(config: TrackingConfig) -> Finding:
    """Whether this node reaches the MLflow store."""
    try:
        store = check_store(config)
    except UserError as error:
        return Finding(FAILURE, "MLflow", f"{error}; check tracking.uri, the server's --allowed-hosts and the network")
    if store is None:
        return Finding(
            WARNING, "MLflow", "no store: no records are kept; set MLFLOW_TRACKING_URI on the nodes, or tracking.uri"
        )
    return Finding(OK, "MLflow", f"{store} answers")


def room_finding(check: str, folder: str, there: float, wanted: float, remedy: str) -> Finding:
    """Whether there are as many bytes in ``folder`` as ``wanted``."""
    enough = there >= wanted
    text = f"{there / 1e9:.1f} GB in {folder}"
    return Finding(
        OK if enough else WARNING, check, text if enough else f"{text}, {wanted / 1e9:.1f} are wanted; {remedy}"
    )


def clock_finding(there: float, asked: float, answered: float) -> Finding:
    """How far the clock of a node is from ours, which was at ``asked`` before and at ``answered`` after it was read."""
    off = max(asked - there, there - answered, 0)
    if off > _CLOCK_S:
        return Finding(FAILURE, "clock", f"{off:.0f} s from the driver's: S3 refuses such requests; let NTP set it")
    return Finding(OK, "clock", "as the driver's")


def merged(of_nodes: Iterable[tuple[str, list[Finding]]]) -> list[Finding]:
    """What was found on the nodes: what all found alike once, and else with those that found it."""
    places: dict[Finding, list[str]] = defaultdict(list)
    addresses = []
    for address, findings in of_nodes:
        addresses.append(address)
        for finding in findings:
            places[finding].append(address)

    def where(on: list[str]) -> str:
        return "" if len(on) == len(addresses) else f" [{', '.join(on[:3])}{' and others' if len(on) > 3 else ''}]"

    return [finding._replace(text=finding.text + where(on)) for finding, on in places.items()]
