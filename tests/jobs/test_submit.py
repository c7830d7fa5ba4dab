"""Jobs on a real cluster with token authentication, whose Python does not have the package, as its page says.

Their data, checkpoints and outputs are in a bucket, their record is on an MLflow server.
"""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pages
import pytest
import requests
from deadlines import extend
from servers import MlflowServer, free_ports

import voxfleet
from voxfleet import storage
from voxfleet.cli import main
from voxfleet.data.index import read_index
from voxfleet.data.shards import read_manifest, read_shard
from voxfleet.train.checkpoint import CheckpointStore

pytestmark = pytest.mark.slow
DONE = ("train", "generate")
TOKEN = "a-token-of-the-tests-that-is-long-enough"
_WITHIN_S = extend(300)


def python_without_the_package(folder):
    """A Python with all that we need of others: what an editable installation adds is not read from there."""
    venv.create(folder, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@dataclass(frozen=True)
class Head:
    """A cluster of one node, its job server, where relative paths begin, the record, and the node's address."""

    address: str
    environment: dict[str, str]
    python: Path
    root: str
    record: str
    node: str

    def run(self, command, *arguments):
        """A command for clusters, in this process; its exit code."""
        return main([command, *arguments, "--address", self.address])

    def submit(self, *arguments):
        return self.run("submit", *arguments, *self._there())

    def command(self, *arguments):
        """The command line of a submission, for a process of its own."""
        return [
            *[sys.executable, "-m", "voxfleet.cli", "submit", *arguments],
            *["--address", self.address, *self._there()],
        ]

    def _there(self):
        return ["--root", self.root, "--tracking.uri", self.record]

    def states(self):
        """The state of each run in the record, by its name."""
        client = mlflow.MlflowClient(self.record)
        found = client.search_runs([client.get_experiment_by_name("voxfleet").experiment_id])
        states = {run.info.run_name: run.info.status for run in found}
        assert len(states) == len(found)
        return states


@pytest.fixture(scope="module")
def record(tmp_path_factory, empty_database):
    """The address of an MLflow server."""
    with MlflowServer.kept(tmp_path_factory.mktemp("record") / "server", empty_database) as server:
        server.start()
        yield server.uri


@pytest.fixture(scope="module")
def head(tmp_path_factory, s3, record):
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
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a script that starts it with an "&"
        )
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            address = f"http://127.0.0.1:{job_port}"
            wait_until(lambda: answers(address), process, folder / "log")
            yield Head(address, environment, python, f"{s3}/cluster", record, f"127.0.0.1:{port}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(address):
    with contextlib.suppress(requests.RequestException):
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
def demo(workspace, head):
    """What the jobs of the demo leave, in small, the later ones of them done on the cluster."""
    workspace.upload(head.root, "vae", "latents")
    for job in DONE:
        assert head.submit(*workspace.arguments(job), "--id", f"demo-{job}") == 0, job
    return f"{head.root}/demo"


def test_the_demo_runs_where_the_package_is_not_installed(head, demo, capfd):
    command = [head.python, "-c", "import voxfleet"]
    found = subprocess.run(command, env=head.environment, cwd="/", capture_output=True, text=True, check=False)
    assert "No module named 'voxfleet'" in found.stderr
    assert set(head.states().values()) == {"FINISHED"}
    assert len(head.states()) == len(DONE)
    assert head.run("jobs") == 0
    listed = {line.split()[0]: line.split()[1:3] for line in capfd.readouterr().out.splitlines()[1:]}
    assert {name: listed[name] for name in listed if name.startswith("demo-")} == {
        f"demo-{job}": ["succeeded", "0"] for job in DONE
    }


def test_what_the_demo_leaves_in_a_bucket_is_whole(demo):
    assert storage.read_json(f"{demo}/runs/dit/history.json")[-1]["step"] == 6
    assert [name for name in storage.names(f"{demo}/runs/dit") if name.startswith("checkpoint")]
    bundle = voxfleet.load_model(f"{demo}/model")
    assert np.isfinite(bundle.sample(["HC"], [1], sampler="ddim", steps=2).numpy()).all()
    rows = read_shard(f"{demo}/synthetic/manifest.parquet").to_pylist()
    assert len(rows) == 6
    for row in rows:
        assert hashlib.sha256(storage.read_bytes(f"{demo}/synthetic/{row['file']}")).hexdigest() == row["sha256"]


def test_what_is_complete_in_a_bucket_is_passed_over(workspace, head, demo, monkeypatch, capsys):
    monkeypatch.setenv(storage.ROOT, head.root)
    for job in DONE:
        assert workspace.run(job, "--tracking.uri", head.record) == 0
    assert capsys.readouterr().err.count("is complete, nothing to do") == len(DONE)


def test_a_damaged_shard_in_a_bucket_is_named(s3, demo):
    folder, manifest = f"{s3}/damaged", read_manifest(f"{demo}/latents", "latents")
    for shard in manifest.shards:
        storage.write_bytes(f"{folder}/{shard['file']}", storage.read_bytes(f"{demo}/latents/{shard['file']}")[:-9])
    with pytest.raises(voxfleet.errors.UserError, match=r"part-00000\.parquet is missing or damaged"):
        read_index(folder, manifest, ("mu",))


@pytest.mark.matrix
def test_the_commands_of_the_page_run(workspace, head, s3, demo):
    """Where they say HEAD, BUCKET and MLFLOW stand those of the tests; training is as short as the demo's."""
    here = {"http://HEAD:8265": head.address, "http://MLFLOW:5000": head.record, "s3://BUCKET/voxfleet": head.root}
    asked = list(filter(pages.of_a_cluster, pages.commands("cluster")))
    assert [words[:2] for words in asked] == [["voxfleet", "doctor"], ["voxfleet", "submit"], ["ray", "job"]]
    for number, words in enumerate(asked):
        for there, ours in {**here, "s3://BUCKET": s3}.items():
            words = [word.replace(there, ours) for word in words]
        program, *arguments = words
        if "doctor" not in arguments:
            own = ["--output", f"page/{number}", "--package", f"page/{number}/model", "--name", f"page-{number}"]
            own += ["--resources.workers", "1"]
            arguments += [*workspace.smaller("train"), *own]
        done = subprocess.run(
            [sys.executable, "-m", {"voxfleet": "voxfleet.cli", "ray": "ray.scripts.scripts"}[program], *arguments],
            cwd=pages.ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for number in (1, 2):
        assert voxfleet.load_model(f"{head.root}/page/{number}/model").classes == ("HC", "TLE")


def test_a_failed_job_gives_its_exit_code_and_its_log(workspace, head, capfd):
    arguments = [*workspace.arguments("encode"), "--data", "nowhere", "--output", "elsewhere", "--id", "fails"]
    assert head.submit(*arguments) == 2
    seen = capfd.readouterr()
    reason = "voxfleet: error: nowhere holds no finished volumes"
    assert reason in seen.out
    how = f"`voxfleet logs fails --address {head.address}` shows its log again"
    assert f"fails ended with exit code 2; {how}" in seen.err
    assert head.run("logs", "fails") == 2
    assert reason in capfd.readouterr().out
    assert head.run("logs", "fails", "--follow", "false") == 0
    assert reason in capfd.readouterr().out


def test_a_relative_path_that_begins_nowhere_is_refused(workspace, head, capfd):
    assert head.run("submit", *workspace.arguments("cohort")) == 2
    assert re.search(r"error: demo/cohort\S* is a relative path.*voxfleet submit --root", capfd.readouterr().out)


def test_left_looked_at_again_stopped_and_gone_on_with(workspace, head, demo, tmp_path, capfd):
    long = [*workspace.arguments("train"), "--trainer.epochs", "400", "--trainer.checkpoint_every", "1"]
    long += ["--output", "long", "--package", "long/package", "--name", "long"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            head.command(*long, "--id", "long"),
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        wait_until(lambda: "are read once and kept" in (tmp_path / "log").read_text(), process, tmp_path / "log")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=_WITHIN_S) == 130
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    at = f"--address {head.address}"
    how = f"`voxfleet logs long {at}` shows it, `voxfleet stop long {at}` stops it, `voxfleet jobs {at}` lists all"
    assert last == f"voxfleet: long goes on; {how}"
    checkpoints = CheckpointStore(f"{head.root}/long/long")
    looking = subprocess.Popen(
        [sys.executable, "-m", "voxfleet.cli", *re.search(r"`voxfleet (logs long .*?)`", last)[1].split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(checkpoints.steps, looking, tmp_path / "log")
    assert head.run("stop", "long") == 0
    _, errors = looking.communicate(timeout=_WITHIN_S)
    assert looking.returncode == 130
    assert "long was stopped; the same submission goes on from where it was" in errors
    assert head.states()["long"] == "KILLED"
    capfd.readouterr()
    assert head.run("stop", "long") == 0
    assert "long is not running (stopped)" in capfd.readouterr().err
    seen = tmp_path / "again"
    with seen.open("w") as log:
        process = subprocess.Popen(head.command(*long, "--id", "again"), stdout=log)
        wait_until(lambda: re.search(r"going on from step \d+ of 800", seen.read_text()), process, seen)
        assert head.run("stop", "again") == 0
        assert process.wait(timeout=_WITHIN_S) == 130


def test_doctor_looks_from_a_worker(head, tmp_path, capfd):
    assert head.run("doctor", "--storage", f"[{tmp_path}/new, /proc/nothing]") == 2
    lines = {line[:4].strip() + " " + line[6:20].strip(): line for line in capfd.readouterr().out.splitlines()}
    assert {"ok packages", "ok GPUs", "ok storage", "FAIL storage", "warn MLflow", "ok clock"} <= set(lines)
    assert "/proc/nothing" in lines["FAIL storage"]
    assert not list((tmp_path / "new").iterdir())


def test_a_job_on_a_node_joins_its_cluster_with_the_token(head, tmp_path):
    def doctor(token):
        command = [sys.executable, "-m", "voxfleet.cli", "doctor", "--resources.address", head.node]
        env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    joined = doctor(head.environment["RAY_AUTH_TOKEN_PATH"])
    assert re.search("cannot run our code .*No module named 'voxfleet'", joined.stdout)
    refused = doctor(str(tmp_path / "none"))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"voxfleet: error: cannot join Ray at {head.node} (RAY_AUTH_TOKEN_PATH is set but file")


@pytest.mark.parametrize(
    ("token", "reason"), [("another", "wants another token"), ("", "wants a token")], ids=["wrong", "none"]
)
def test_a_wrong_token_is_one_line(head, tmp_path, monkeypatch, fails, token, reason):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text(token)
    assert reason in fails(head.run, "jobs")


def test_an_unknown_job_is_one_line(head, fails):
    for command in ("logs", "stop"):
        line = fails(head.run, command, "nobody")
        assert f"knows no job nobody; `voxfleet jobs --address {head.address}` lists" in line
