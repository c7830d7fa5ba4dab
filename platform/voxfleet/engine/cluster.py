"""Joining a Ray cluster, or starting a private one, without its noise."""

import atexit
import contextlib
import functools
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.data
import ray.util
from ray._private import ray_constants
from ray._private.state import state
from ray.job_config import JobConfig

from voxfleet.config.resources import ResourcesConfig
from voxfleet.engine import head
from voxfleet.engine.console import say
from voxfleet.errors import UserError, VoxfleetError, WorkMissingError

_AUTOSCALED = "ray.io/node-group"  # a label that Ray's autoscaler gives its nodes
_KINDS_SHOWN = 3
_sessions = 0  # one within the other
_REACH_S = 5.0
_START_ATTEMPTS = 2
_LONGEST_TMPDIR = 36  # bytes: with /ray/session_DATE_TIME_PID/sockets/plasma_store at most 107, the limit of a socket
_SHORT_FOLDER = "/tmp/ray"  # Ray's own where no variable is set


@contextlib.contextmanager
def session(config: ResourcesConfig) -> Iterator[None]:
    """Be connected to Ray: to the cluster that is already joined, named, or else a private one on this machine.

    A private cluster counts one CPU more than the machine has, so that a reader runs beside workers that take all.

    Raises:
        UserError: if the named cluster cannot be reached.
        WorkMissingError: if a private cluster does not start.
    """
    global _sessions
    _sessions += 1
    try:
        with contextlib.nullcontext() if ray.is_initialized() else _joined(config):
            yield
    finally:
        _sessions -= 1


def ends_with_job() -> bool:
    """Whether the connection to Ray, and with it all that is held, ends with the job that runs."""
    return _sessions == 1


@contextlib.contextmanager
def _joined(config: ResourcesConfig) -> Iterator[None]:
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    source = "resources.address" if config.address else "RAY_ADDRESS"  # what names the address
    _check_reachable(address, source)
    try:
        _join(address)
    except UserError:
        raise
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise UserError(
            f"cannot join Ray at {address} ({_first_sentence(error)}); check {source}, and, where the cluster has a "
            "token, RAY_AUTH_MODE=token and the file that RAY_AUTH_TOKEN_PATH names"
        ) from error
    try:
        quiet_data()
        with head.watched(ray.get_runtime_context().gcs_address) if address != "local" else contextlib.nullcontext():
            yield
    finally:
        ray.shutdown()


def _check_reachable(address: str, source: str) -> None:
    """Make sure that something listens at ``address``: Ray itself would try for minutes, and say so line by line.

    ``source`` is the key or variable that names it.
    """
    scheme, _, _ = address.rpartition("://")
    if scheme in ("http", "https"):
        raise UserError(
            f"{address} is a job server, which takes jobs from `voxfleet submit JOB --address {address}`; to join the "
            f"cluster from one of its nodes, set {source} to auto"
        )
    if scheme:
        raise UserError(
            f"{address} is no address that a job can join; set {source} to auto on a node of the cluster, to its head "
            "(HEAD:6379) from its network, or use `voxfleet submit`"
        )
    host, _, port = address.rpartition(":")
    if not host:
        return  # auto, local
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"nothing answers at {address} ({getattr(error, 'strerror', None) or error}); check {source}, and that the "
            "cluster is up"
        ) from error


def _join(address: str) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": _JobConfig()}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ parts write warnings to our console
    if address != "local":
        with _no_native_stderr():  # where Ray's C++ parts say that their log level is set
            ray.init(address=address, **quiet)
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # an actor that waits for notices of a cloud
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 nearly stops a job beside other work of this machine
    _private_token()
    # Ray's own switch for loopback, which it throws on other systems; without it every server listens on all interfaces
    ray_constants.ENABLE_RAY_CLUSTER = False
    _start_private(
        num_cpus=len(os.sched_getaffinity(0)) + 1,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=temporary_folder(),
        **quiet,
    )


class _JobConfig(JobConfig):
    """Settings of a job whose workers do not import from the driver's working folder and the folder of its script.

    Ray puts both first on their path, so that a numpy.py beside the data would take the place of NumPy. The package is
    installed, or on PYTHONPATH.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # where that is so, Ray 2.60 adds neither folder (ray/_private/worker.py, connect)


def temporary_folder() -> str | None:
    """The folder for Ray's files where it should not be Ray's own choice.

    Raises:
        UserError: if the variable that names Ray's choice names a folder that cannot be used.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)  # in Ray's order
    if name is None:
        return None
    folder = os.environ[name]
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{name} is {folder!r}, where no files can be made ({error.strerror}); set it to a folder of yours, or "
            "unset it"
        ) from error
    if len(os.fsencode(os.path.abspath(folder))) <= _LONGEST_TMPDIR:
        return None
    say(f"{name} is too long for the names of Ray's sockets; its files go to {_SHORT_FOLDER}", level="warning")
    return _SHORT_FOLDER


def _start_private(**options: Any) -> None:
    """Start a cluster on this machine; try again if that fails.

    Ray gives its processes 30 s (ray/_private/node.py, Ray 2.60), which a busy machine may exceed.

    Raises:
        WorkMissingError: if the last attempt fails, too.
    """
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        children = psutil.Process().children(recursive=True)
        try:
            with _no_native_stderr():  # where Ray's C++ parts say that their log level is set
                ray.init(address="local", **options)
            return
        except (ValueError, ray.exceptions.AuthenticationError):
            raise  # a setting is wrong, which no second attempt mends
        except Exception as error:  # for a start that takes too long Ray raises no class of its own
            reason = _first_sentence(error)
        started = set(psutil.Process().children(recursive=True)).difference(children)
        ray.shutdown()
        for child in started:  # Ray forgets the processes of a start that failed
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(started, timeout=_REACH_S)
        if attempts_left:
            say(f"Ray did not start ({reason}); trying again", level="warning")
    raise WorkMissingError(
        f"Ray did not start in {_START_ATTEMPTS} attempts ({reason}); run the same command again when this machine is "
        "less busy, or set resources.address to a cluster that runs"
    )


def _first_sentence(error: Exception) -> str:
    """The first sentence of an error's message, or the error's class where there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]


@contextlib.contextmanager
def _no_native_stderr() -> Iterator[None]:
    """Drop what is written to the file descriptor of stderr; what fails is raised all the same."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@functools.cache
def _private_token() -> None:
    """Give the clusters that this process starts a token in a file that only this user reads.

    Ray's own choice would be a file in the home folder that everyone may read. It caches a process's first token.
    """
    if "RAY_AUTH_TOKEN_PATH" in os.environ or "RAY_AUTH_TOKEN" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="voxfleet-")  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = Path(folder) / "token"
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def quiet_data() -> None:
    """Send Ray Data's own progress and notices to its logs; to be called in every process that runs Ray Data."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        for handler in logging.getLogger(name).handlers:
            handler.setLevel(logging.CRITICAL)  # what fails is raised, and printed by us


def actors(class_name: str, *states: str) -> list[str]:
    """Ids of the actors of this class that this process, or a library for it, made and that are in these states."""
    job = ray.get_runtime_context().get_job_id()
    found = [entry for name in states for entry in state.actor_table(None, actor_state_name=name).items()]
    return [key for key, actor in found if actor["ActorClassName"] == class_name and actor["JobID"] == job]


def kill_actors(class_name: str) -> None:
    """Kill the actors of this class; of those that a library made there are no handles."""
    for actor_id in actors(class_name, "ALIVE"):
        ray._private.worker.global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor_id), True)


def gpus_per_worker(config: ResourcesConfig) -> float:
    """GPUs of each worker: as configured, or one where the cluster has any, or its autoscaler may bring some."""
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return 1.0 if max(ray.cluster_resources().get("GPU", 0), gpus_to_come()) >= 1 else 0.0


def gpus_to_come() -> float:
    """The GPUs that the cluster has when it is as large as its autoscaler makes it; 0 without an autoscaler."""
    return (state.get_max_resources_from_cluster_config() or {}).get("GPU", 0)


def check_fits(config: ResourcesConfig, more_workers: int = 0) -> None:
    """Make sure that the cluster has room for the workers (``min_workers`` of them, and some more like them).

    What others hold is waited for.

    Raises:
        UserError: at once if its nodes can never hold them, after ``wait_s`` if there is still no room.
    """
    asked = _asked(config, more_workers)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    there = [node["Resources"] for node in nodes]
    if not asked.fits(there) and not any(_AUTOSCALED in node["Labels"] for node in nodes):
        raise UserError(
            f"no room for {asked}: the cluster ({_described(there)}) holds {asked.fitting(there)} of them; "
            f"lower {asked.too_much(there)}"
        )
    _wait_for_room(asked, config.wait_s)


def _asked(config: ResourcesConfig, more_workers: int = 0) -> "_Asked":
    key = "resources.workers" if config.min_workers is None else "resources.min_workers"
    return _Asked(
        (config.min_workers or config.workers) + more_workers,
        {"CPU": config.cpus_per_worker, "GPU": gpus_per_worker(config)},
        f"{key} and pools.decoders together" if more_workers else key,
    )


def in_words(config: ResourcesConfig) -> str:
    """The workers, and what each takes: ``2 workers of 4 CPUs and 1 GPU``."""
    return str(_asked(config))


def capacity(config: ResourcesConfig) -> int:
    """How many groups of ``workers`` the cluster holds at once."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return _asked(config).fitting(there) // config.workers


def free_cpus() -> float:
    """CPUs that nothing holds now."""
    return sum(node.get("CPU", 0) for node in state.available_resources_per_node().values())


def lacking(config: ResourcesConfig) -> str | None:
    """What there is room for now, in words, where the workers (``min_workers`` of them) need more; else None."""
    asked, free = _asked(config), list(state.available_resources_per_node().values())
    return None if asked.fits(free) else f"no room for {asked}: {asked.fitting(free)} fit (free: {_described(free)})"


def _wait_for_room(asked: "_Asked", wait_s: int) -> None:
    # Ray holds the room for a moment, which is the one sure way to know, and tells an autoscaler what is wanted
    room = ray.util.placement_group([asked.bundle] * asked.workers)
    try:
        for second in range(wait_s + 1):
            if room.wait(1):  # in short pieces: Ctrl-C is heard between them
                return
            free = list(state.available_resources_per_node().values())
            now = f"{asked.fitting(free)} fit beside what others hold"
            if not second and wait_s:
                say(f"waiting up to {wait_s} s for room for {asked}: {now}")
    finally:
        ray.util.remove_placement_group(room)
    raise UserError(
        f"no room for {asked} within {wait_s} s: {now} (free: {_described(free)}); "
        f"try again later, raise resources.wait_s, or lower {asked.too_much(free)}"
    )


@dataclass(frozen=True)
class _Asked:
    """A number of like ``workers``, what each takes on one node, and the ``key`` that says how many they are."""

    workers: int
    worker: Mapping[str, float]
    key: str

    def __str__(self) -> str:
        return f"{_counted(self.workers, 'worker')} of {_amounts(self.worker)}"

    @property
    def bundle(self) -> dict[str, float]:
        return {name: need for name, need in self.worker.items() if need}

    def fitting(self, nodes: Sequence[Mapping[str, float]]) -> int:
        return workers_that_fit(self.bundle, nodes)

    def fits(self, nodes: Sequence[Mapping[str, float]]) -> bool:
        return self.fitting(nodes) >= self.workers

    def too_much(self, nodes: Sequence[Mapping[str, float]]) -> str:
        """The keys to lower: for resources of which there are too few, or else all, as no node has them together."""
        short = [name for name, need in self.bundle.items() if workers_that_fit({name: need}, nodes) < self.workers]
        size = " or ".join(f"resources.{name.lower()}s_per_worker" for name in short or self.bundle)
        fitting = self.fitting(nodes)
        return f"{self.key} to {fitting}, or {size}" if fitting else size


def workers_that_fit(worker: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers, each of which takes ``worker`` (resource to amount) of one node, the ``nodes`` hold."""
    return sum(min(_times(node.get(name, 0), need) for name, need in worker.items() if need) for node in nodes)


def _times(there: float, need: float) -> int:
    """How often ``need`` goes into ``there``; a part of a GPU is always a part of one and the same."""
    slack = 1e-6
    if need >= 1:
        return int(there / need + slack)
    return int(there) * int(1 / need + slack) + int(there % 1 / need + slack)


def _amounts(resources: Mapping[str, float]) -> str:
    """CPUs and GPUs in words: ``4 CPUs and 1 GPU``."""
    amounts = {name: resources.get(name, 0) for name in ("CPU", "GPU")}
    return " and ".join(_counted(amount, name) for name, amount in amounts.items() if amount) or "no CPUs"


def _counted(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def _described(nodes: Sequence[Mapping[str, float]]) -> str:
    """Nodes in words, the most frequent kinds first: ``2 nodes of 3 CPUs``."""
    kinds = Counter(_amounts(node) for node in nodes).most_common()
    words = [f"{_counted(count, 'node')} of {kind}" for kind, count in kinds[:_KINDS_SHOWN]]
    return ", ".join(words + ["others"] * (len(kinds) > _KINDS_SHOWN))


def _ours(error: BaseException | None) -> VoxfleetError | None:
    """The error of ours that Ray Core or Ray Train wrapped, without Ray's traceback in its message; None if none."""
    if error is None:
        return None
    if isinstance(error, VoxfleetError) and not isinstance(error, ray.exceptions.RayError):
        return error
    failures = getattr(error, "worker_failures", {}).values()
    wrapped = (getattr(error, "cause", None), error.__cause__, *failures)
    return next((ours for ours in map(_ours, wrapped) if ours), None)


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Turn an error of ours that comes back wrapped by Ray into itself."""
    try:
        yield
    except Exception as error:
        ours = _ours(error)
        if ours is None or ours is error:
            raise
        raise ours from None
