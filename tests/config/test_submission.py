"""How a cluster is named, and what of a command line is whose."""

import dataclasses
from pathlib import Path

import pytest

from voxfleet.cli import CLUSTER, JOBS, config_class, main, parse
from voxfleet.config.submission import PROFILE, ProfileConfig, SubmitConfig, split_arguments, with_profile
from voxfleet.errors import UserError

DEMO = Path(__file__).parents[2] / "configs" / "cohort" / "demo.yaml"


def test_keys_of_a_submission_are_no_jobs_own():
    own = {field.name for field in dataclasses.fields(SubmitConfig)} | {"profile"}
    taken = {(job, f.name) for job in JOBS for f in dataclasses.fields(config_class(job)) if f.name in own}
    assert taken == set()


def test_arguments_go_to_whom_they_belong():
    arguments = ["--config", "a.yaml", "--address", "http://h:1", "--model.depth", "2", "--env.A=b", "--follow=false"]
    mine, of_job = split_arguments([*arguments, "--classes", "[HC, TLE]"])
    assert mine == ["--address", "http://h:1", "--env.A=b", "--follow=false"]
    assert of_job == ["--config", "a.yaml", "--model.depth", "2", "--classes", "[HC, TLE]"]


def test_a_profile_comes_from_the_command_line_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "profile.yaml"
    file.write_text("address: http://head:8265\nroot: s3://bucket/me\nenv: {MLFLOW_TRACKING_URI: http://mlflow:5000}\n")
    config = parse("submit", with_profile(["--profile", str(file)]))
    assert (config.job_server, config.root) == ("http://head:8265", "s3://bucket/me")
    monkeypatch.setenv(PROFILE, str(file))
    assert parse("jobs", with_profile([])).env == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert parse("stop", with_profile(["--id", "x", "--address", "http://other:1"])).job_server == "http://other:1"
    assert with_profile(["--profile", "another.yaml"]) == ["--config", "another.yaml"]


def test_the_address_may_come_from_rays_variables(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="no cluster is named"):
        _ = ProfileConfig().job_server
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # a cluster, but not its job server
    with pytest.raises(UserError, match="no cluster is named"):
        _ = ProfileConfig().job_server
    monkeypatch.setenv("RAY_ADDRESS", "http://one:8265/")
    assert ProfileConfig().job_server == "http://one:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://two:8265")
    assert ProfileConfig().job_server == "http://two:8265"
    assert ProfileConfig(address="http://three:8265").job_server == "http://three:8265"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("RAY_AUTH_TOKEN", "x"),
        ("MLFLOW_TRACKING_PASSWORD", "x"),
        ("MLFLOW_TRACKING_URI", "http://me:mine@mlflow:5000"),
        ("PIP_INDEX_URL", "https://mine@host"),
    ],
)
def test_secrets_are_not_sent(name, value):
    with pytest.raises(ValueError, match=f"env.{name} looks secret"):
        ProfileConfig(env={name: value})


def test_what_only_looks_secret_is_sent():
    assert ProfileConfig(env={"TOKENIZERS_PARALLELISM": "false", "GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json"}).env


def test_doctor_goes_to_the_cluster_that_a_profile_names(tmp_path, monkeypatch, capsys):
    (tmp_path / "profile.yaml").write_text("address: http://127.0.0.1:1\n")
    monkeypatch.setenv(PROFILE, str(tmp_path / "profile.yaml"))
    assert main(["doctor"]) == 2
    assert "no job server answers at http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("address", "head:8265", "such as http://HEAD:8265"),
        ("address", "http://me:mine@head:8265", "address holds a user or password"),
        ("root", "work", "a full path, s3://"),
        ("id", "../x", "of letters, digits"),
    ],
)
def test_a_bad_value_is_refused(key, value, reason):
    with pytest.raises(ValueError, match=reason):
        SubmitConfig(**{key: value})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["submit"], "which job? voxfleet submit JOB"),
        (["submit", "paint"], "unknown job 'paint'; the jobs are cohort"),
        (["submit", "train", "--address", "http://h:1", "--outputs", "x"], "did you mean output?"),
        (["submit", "cohort", "--output", "x", "--adress", "http://h:1"], "config key adress is not known"),
        (["submit", "cohort", "--output", "x"], "no cluster is named"),
        (["logs"], "config key id is missing"),
        (["doctor", "--storage", "work"], "config key storage: it is a list of text; write --storage \"['work']\""),
        (
            ["jobs", "--address", "http://127.0.0.1:1"],
            "no job server answers at http://127.0.0.1:1 (Connection refused)",
        ),
        (
            ["submit", "cohort", "--output", "x", "--address", "http://h:1", "--tracking.uri", "http://me:mine@m:5000"],
            "tracking.uri holds a password",
        ),
        (
            ["submit", "cohort", "--config", str(DEMO), "--root", "s3://bucket/me", "--address", "http://h:1"],
            "cannot lie in s3://bucket/me; give --tracking.uri http://MLFLOW:5000",
        ),
    ],
)
def test_a_bad_request_is_one_line_and_reaches_nobody(arguments, reason, capsys, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", PROFILE):
        monkeypatch.delenv(name, raising=False)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("voxfleet: error: ")
    assert reason in line
    assert "mine" not in line


def test_every_command_explains_itself(capsys):
    for command in CLUSTER:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert "--address" in capsys.readouterr().out
