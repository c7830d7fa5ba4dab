"""Private sessions: on loopback, with a token that nobody else reads; errors of ours come back as themselves."""

import contextlib
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
from deadlines import extend

from voxfleet.config.resources import ResourcesConfig
from voxfleet.engine import cluster
from voxfleet.engine.cluster import check_fits, ray_errors, session, workers_that_fit
from voxfleet.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_session")
START_SLOWLY = Path(__file__).parents[1] / "support" / "start_slowly.py"


@ray.remote
def refuse():
    raise UserError("bad; mend it")


def test_every_server_listens_on_loopback():
    mine = psutil.Process()
    open_ports = []
    for process in [mine, *mine.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it is just ending
            found = process.net_connections("inet")
            open_ports += [connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN]
    assert len(open_ports) > 3
    assert {ip.removeprefix("::ffff:") for ip in open_ports} == {"127.0.0.1"}


def test_workers_are_no_nicer_than_the_driver():
    @ray.remote
    def niceness():
        return os.nice(0)

    assert ray.get(niceness.remote()) == os.nice(0)


def start_slowly(attempts):
    """Run the script of this name; returns its outcome, and processes that it left running."""
    mark = {"VOXFLEET_TEST_START": str(attempts)}
    done = subprocess.run(
        [sys.executable, START_SLOWLY, str(attempts)],
        env={**os.environ, **mark},
        capture_output=True,
        text=True,
        timeout=extend(120),
        check=False,
    )
    left = [
        process
        for process in psutil.process_iter(["environ"])
        if mark.items() <= (process.info["environ"] or {}).items()
    ]
    return done, psutil.wait_procs(left, timeout=extend(10))[1]


@pytest.mark.slow
def test_a_ray_that_starts_too_slowly_is_started_again():
    done, _ = start_slowly(1)
    assert (done.returncode, done.stdout) == (0, "1 raylet")
    assert re.fullmatch(r"Ray did not start \(The current node timed out during startup\); trying again\n", done.stderr)


@pytest.mark.slow
def test_a_ray_that_does_not_start_is_one_line_with_exit_code_4_and_leaves_nothing():
    done, left = start_slowly(2)
    assert done.returncode == 4
    assert left == []
    assert re.search(
        r"\nvoxfleet: error: Ray did not start in 2 attempts \(The current .*\); run the same command again when this "
        r"machine is less busy, or set resources.address to a cluster that runs\n$",
        done.stderr,
    )


def test_the_token_is_private():
    mode = stat.S_IMODE(os.stat(os.path.dirname(os.environ["RAY_AUTH_TOKEN_PATH"])).st_mode)
    assert mode == 0o700


def test_an_error_of_ours_comes_back_from_a_task_without_rays_traceback():
    with pytest.raises(UserError) as caught, ray_errors():
        ray.get(refuse.remote())
    assert str(caught.value) == "bad; mend it"
    assert type(pickle.loads(pickle.dumps(caught.value))) is UserError


def test_another_error_is_left_alone():
    with pytest.raises(ZeroDivisionError), ray_errors():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("worker", "nodes", "fit"),
    [
        ({"CPU": 4}, [{"CPU": 3}, {"CPU": 3}], 0),
        ({"CPU": 2}, [{"CPU": 3}, {"CPU": 4}, {"memory": 1.0}], 3),
        ({"CPU": 1, "GPU": 1}, [{"CPU": 8}, {"CPU": 2, "GPU": 4}], 2),
        ({"CPU": 1, "GPU": 0}, [{"CPU": 2}], 2),
        ({"CPU": 1, "GPU": 0.1}, [{"CPU": 99, "GPU": 1}], 10),
        ({"CPU": 1, "GPU": 0.4}, [{"CPU": 99, "GPU": 2}], 4),  # two on each GPU: a part is not taken from two
        ({"CPU": 1, "GPU": 0.2}, [{"CPU": 99, "GPU": 1.4}], 7),
        ({"CPU": 1}, [], 0),
    ],
)
def test_workers_fit_onto_single_nodes(worker, nodes, fit):
    assert workers_that_fit(worker, nodes) == fit


def nodes_of(*resources, **more):
    return lambda: [{"Alive": True, "Labels": {}, "Resources": amounts, **more} for amounts in resources]


@pytest.mark.parametrize(
    ("asked", "nodes", "message"),
    [
        (
            {"workers": 2, "cpus_per_worker": 4},
            nodes_of({"CPU": 3}, {"CPU": 3}),
            "no room for 2 workers of 4 CPUs: the cluster (2 nodes of 3 CPUs) holds 0 of them; "
            "lower resources.cpus_per_worker",
        ),
        (
            {"workers": 3, "gpus_per_worker": 1},
            nodes_of({"CPU": 8, "GPU": 2}, {"CPU": 8}),
            "no room for 3 workers of 1 CPU and 1 GPU: the cluster (1 node of 8 CPUs and 2 GPUs, 1 node of 8 CPUs) "
            "holds 2 of them; lower resources.workers to 2, or resources.gpus_per_worker",
        ),
        (
            {"workers": 9, "min_workers": 3, "cpus_per_worker": 2},
            nodes_of({"CPU": 3}, {"CPU": 3}),
            "no room for 3 workers of 2 CPUs: the cluster (2 nodes of 3 CPUs) holds 2 of them; "
            "lower resources.min_workers to 2, or resources.cpus_per_worker",
        ),
        (
            {"workers": 1, "cpus_per_worker": 4, "gpus_per_worker": 1},
            nodes_of({"CPU": 1, "GPU": 1}, {"CPU": 9}),
            "no room for 1 worker of 4 CPUs and 1 GPU: the cluster (1 node of 1 CPU and 1 GPU, 1 node of 9 CPUs) "
            "holds 0 of them; lower resources.cpus_per_worker or resources.gpus_per_worker",
        ),
    ],
)
def test_workers_that_can_never_fit_are_refused_at_once(monkeypatch, asked, nodes, message):
    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(ray.util, "placement_group", None)  # nothing is waited for
    with pytest.raises(UserError) as caught:
        check_fits(ResourcesConfig(**asked))
    assert str(caught.value) == message


def test_dead_nodes_do_not_count(monkeypatch):
    monkeypatch.setattr(ray, "nodes", nodes_of({"CPU": 900}, Alive=False))
    with pytest.raises(UserError, match="holds 0 of them"):
        check_fits(ResourcesConfig(workers=1))


def test_an_elastic_training_needs_room_for_the_fewest_workers():
    check_fits(ResourcesConfig(workers=900, min_workers=1))


def test_room_that_an_autoscaler_may_bring_is_waited_for(monkeypatch):
    labels = {"ray.io/node-group": "workers"}
    monkeypatch.setattr(ray, "nodes", nodes_of({"CPU": 1}, Labels=labels))
    with pytest.raises(UserError, match=r"within 0 s: \d+ fit beside .* raise resources\.wait_s"):
        check_fits(ResourcesConfig(workers=900, wait_s=0))


@ray.remote(num_cpus=0)
class Holder:
    def is_there(self):
        return True


@pytest.fixture
def busy():
    """An actor that holds every CPU."""
    holder = Holder.options(num_cpus=ray.cluster_resources()["CPU"]).remote()
    assert ray.get(holder.is_there.remote())
    yield holder
    ray.kill(holder)


def test_a_busy_cluster_is_waited_for(busy, monkeypatch):
    said = []

    def free(line):
        said.append(line)
        ray.kill(busy)

    monkeypatch.setattr(cluster, "say", free)
    check_fits(ResourcesConfig(workers=2, wait_s=120))
    assert said == ["waiting up to 120 s for room for 2 workers of 1 CPU: 0 fit beside what others hold"]


def test_a_cluster_that_stays_busy_is_one_line_that_says_what_is_missing(busy):
    free = r"\(free: 1 node of no CPUs\)"
    with pytest.raises(UserError, match=f"no room for 2 workers .* within 0 s: 0 fit beside what others hold {free}"):
        check_fits(ResourcesConfig(workers=2, wait_s=0))


def test_the_room_is_given_back(monkeypatch):
    for _ in range(2):  # every CPU, twice
        check_fits(ResourcesConfig(workers=int(ray.cluster_resources()["CPU"])))


def test_a_session_within_a_session_is_the_same():
    with session(ResourcesConfig()):
        pass
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "voxfleet submit JOB --address http://127.0.0.1:8265"),
        ("ray://127.0.0.1:10001", "no address that a job can join"),
        ("127.0.0.1:{closed}", r"nothing answers at 127.0.0.1:\d+ \(Connection refused\)"),
        ("head.invalid:6379", "nothing answers at head.invalid:6379"),
        ("127.0.0.1:port", "nothing answers at 127.0.0.1:port"),
    ],
)
def test_what_cannot_be_joined_is_said_before_ray_tries(monkeypatch, address, words):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would try for minutes"))
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", address.format(closed=closed.getsockname()[1]))
        with pytest.raises(UserError, match=words) as error, session(ResourcesConfig()):
            pass
        assert "RAY_ADDRESS" in str(error.value)  # which names it
        with (
            pytest.raises(UserError, match=words) as error,
            session(ResourcesConfig(address=os.environ["RAY_ADDRESS"])),
        ):
            pass
        assert "resources.address" in str(error.value)


def test_workers_import_nothing_from_the_working_folder():
    @ray.remote
    def path():
        return sys.path

    assert {os.getcwd(), str(Path(sys.argv[0]).resolve().parent)}.isdisjoint(ray.get(path.remote()))


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_for_rays_files_that_cannot_be_used_is_named_by_its_variable(tmp_path, monkeypatch, capsys, name):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing"):
        monkeypatch.setenv(name, str(bad))
        with pytest.raises(
            UserError, match=rf"^{name} is '{bad}', where no files can be made \(.*\); set it to a folder"
        ):
            cluster.temporary_folder()
    monkeypatch.setenv(name, str(tmp_path / ("x" * 120)))
    assert cluster.temporary_folder() == "/tmp/ray"
    assert capsys.readouterr().err.startswith(f"{name} is too long for the names of Ray's sockets")
    monkeypatch.setenv(name, "/tmp")
    assert cluster.temporary_folder() is None
    assert capsys.readouterr().err == ""
