"""Jobs on a real cluster with token authentication, whose Python does not have the package."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests

from voxfleet.cli import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-that-is-long-enough"
_WITHIN_S = 120


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def python_without_the_package(folder):
    """A Python with all that we need of others: what an editable installation adds is not read from there."""
    venv.create(folder, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@dataclass(frozen=True)
class Head:
    """A cluster of one node, its job server, and a folder in which relative paths begin."""

    address: str
    environment: dict[str, str]
    python: Path
    root: Path

    def run(self, command, *arguments):
        """A command for clusters, in this process; its exit code."""
        return main([command, *arguments, "--address", self.address])

    def submit(self, *arguments):
        return self.run("submit", *arguments, "--root", str(self.root))

    def command(self, *arguments):
        """The command line of a submission, for a process of its own."""
        return [
            *[sys.executable, "-m", "voxfleet.cli", "submit", *arguments],
            *["--address", self.address, "--root", str(self.root)],
        ]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    python = python_without_the_package(folder / "env")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    port, job_port, client_port, agent_port = free_ports(4)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"},
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    command = [
        *[python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"],
        *["--dashboard-host=127.0.0.1", f"--dashboard-port={job_port}", f"--ray-client-server-port={client_port}"],
        *[f"--dashboard-agent-listen-port={agent_port}", "--num-cpus=3", "--node-ip-address=127.0.0.1"],
    ]
    with (folder / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            address = f"http://127.0.0.1:{job_port}"
            wait_until(lambda: answers(address), process, folder / "log")
            yield Head(address, environment, python, folder / "root")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(address):
    with contextlib.suppress(requests.ConnectionError):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.get(f"{address}/api/version", headers=headers, timeout=5).ok
    return False


def wait_until(happened, process, log):
    deadline = time.monotonic() + _WITHIN_S
    while not happened():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def demo(head, demo_arguments):
    """The jobs of the demo, in small, all done on the cluster."""
    for job, arguments in demo_arguments.items():
        assert head.submit(*arguments, "--id", f"demo-{job}") == 0, job
    return head.root / "demo"


def test_the_demo_runs_where_the_package_is_not_installed(head, demo, demo_arguments, capfd):
    command = [head.python, "-c", "import voxfleet"]
    found = subprocess.run(command, env=head.environment, cwd="/", capture_output=True, text=True, check=False)
    assert "No module named 'voxfleet'" in found.stderr
    assert len(list(demo.glob("synthetic/sub-*/anat/*.nii.gz"))) == 6
    assert (demo / "report.html").stat().st_size > 10_000
    names = {run.info.status for run in mlflow.MlflowClient(f"sqlite:///{demo}/mlflow.db").search_runs(["1"])}
    assert names == {"FINISHED"}
    capfd.readouterr()
    assert head.run("jobs") == 0
    listed = {line.split()[0]: line.split()[1:3] for line in capfd.readouterr().out.splitlines()[1:]}
    assert {name: listed[name] for name in listed if name.startswith("demo-")} == {
        f"demo-{job}": ["succeeded", "0"] for job in demo_arguments
    }


def test_a_failed_job_gives_its_exit_code_and_its_log(head, demo_arguments, capfd):
    arguments = [*demo_arguments["encode"], "--data", "nowhere", "--output", "elsewhere", "--id", "fails"]
    assert head.submit(*arguments) == 2
    seen = capfd.readouterr()
    reason = "voxfleet: error: nowhere holds no finished volumes"
    assert reason in seen.out
    assert "voxfleet: error: fails ended with exit code 2; `voxfleet logs fails` shows its log again" in seen.err
    assert head.run("logs", "fails") == 2
    assert reason in capfd.readouterr().out
    assert head.run("logs", "fails", "--follow", "false") == 0
    assert reason in capfd.readouterr().out


def test_a_relative_path_that_begins_nowhere_is_refused(head, demo_arguments, capfd):
    assert head.run("submit", *demo_arguments["cohort"]) == 2
    assert re.search(r"error: demo/cohort\S* is a relative path.*voxfleet submit --root", capfd.readouterr().out)


def test_left_looked_at_again_stopped_and_gone_on_with(head, demo, demo_arguments, tmp_path, capfd):
    long = [*demo_arguments["train"], "--trainer.epochs", "400", "--trainer.checkpoint_every", "1"]
    long += ["--output", "long", "--package", "long/package", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            head.command(*long, "--id", "long"),
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        wait_until(lambda: "are read once and kept" in (tmp_path / "log").read_text(), process, tmp_path / "log")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    how = "`voxfleet logs long` shows it, `voxfleet stop long` stops it, `voxfleet jobs` lists all"
    assert last == f"voxfleet: long goes on; {how}"
    checkpoints = head.root / "long" / "dit" / "checkpoints"
    looking = subprocess.Popen(
        [sys.executable, "-m", "voxfleet.cli", "logs", "long", "--address", head.address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: checkpoints.exists() and list(checkpoints.glob("*.pt")), looking, tmp_path / "log")
    assert head.run("stop", "long") == 0
    _, errors = looking.communicate(timeout=60)
    assert looking.returncode == 130
    assert "long was stopped; the same submission goes on from where it was" in errors
    (run,) = mlflow.MlflowClient(f"sqlite:///{tmp_path}/m.db").search_runs(["1"])
    assert run.info.status == "KILLED"
    capfd.readouterr()
    assert head.run("stop", "long") == 0
    assert "long is not running (stopped)" in capfd.readouterr().err
    seen = tmp_path / "again"
    with seen.open("w") as log:
        process = subprocess.Popen(head.command(*long, "--id", "again"), stdout=log)
        wait_until(lambda: re.search(r"going on from step \d+ of 800", seen.read_text()), process, seen)
        assert head.run("stop", "again") == 0
        assert process.wait(timeout=60) == 130


def test_rays_own_command_runs_the_scripts(head, tmp_path, demo_arguments):
    _, *arguments = demo_arguments["cohort"]
    output = tmp_path / "cohort"
    arguments[arguments.index("--config") + 1] = "configs/cohort/demo.yaml"
    command = [
        *[sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address],
        *["--working-dir", str(ROOT), "--runtime-env-json", '{"env_vars": {"PYTHONPATH": "platform"}}', "--"],
        *[
            "python",
            "jobs/cohort.py",
            *arguments,
            "--output",
            str(output),
            "--tracking.uri",
            f"sqlite:///{tmp_path}/m.db",
        ],
    ]
    done = subprocess.run(
        command, env={**os.environ, "RAY_AUTH_MODE": "token"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((output / "participants.tsv").read_text().splitlines()) == 13


def test_doctor_looks_from_a_worker(head, tmp_path, capfd):
    assert head.run("doctor", "--storage", f"[{tmp_path}/new, /proc/nothing]") == 2
    lines = {line[:4].strip() + " " + line[6:20].strip(): line for line in capfd.readouterr().out.splitlines()}
    assert {"ok packages", "ok GPUs", "ok storage", "FAIL storage", "warn MLflow", "ok clock"} <= set(lines)
    assert "/proc/nothing" in lines["FAIL storage"]
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("token", "reason"), [("another", "wants another token"), ("", "wants a token")], ids=["wrong", "none"]
)
def test_a_wrong_token_is_one_line(head, tmp_path, monkeypatch, fails, token, reason):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text(token)
    assert reason in fails(head.run, "jobs")


def test_an_unknown_job_is_one_line(head, fails):
    for command in ("logs", "stop"):
        assert f"{head.address} knows no job nobody; `voxfleet jobs` lists" in fails(head.run, command, "nobody")
