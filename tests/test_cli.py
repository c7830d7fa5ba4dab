"""The command line: help, printed configurations, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from voxfleet import __version__, cli
from voxfleet.cli import JOBS, main, parse
from voxfleet.errors import UserError, WorkMissingError

ROOT = Path(__file__).parent.parent


def test_help_lists_every_job(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name} " in page for name in JOBS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"voxfleet {__version__}\n"


@pytest.mark.parametrize("job", JOBS)
def test_help_explains_every_key(job, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([job, "--help"])
    assert stopped.value.code == 0
    page = capsys.readouterr().out
    keys = page[page.index("\noptions:") :].split("\n  --")[1:]
    assert len(keys) > 5
    for key in keys:
        text = " ".join(key.split()[2:])
        assert text.partition("(")[0].strip() or "CONFIG" in key, f"--{key} is not explained"


def test_a_printed_configuration_is_the_one_that_would_run(tmp_path, capsys):
    arguments = ["--config", str(ROOT / "configs/train/demo.yaml"), "--model.depth", "3"]
    with pytest.raises(SystemExit):
        main(["train", *arguments, "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = parse("train", ["--config", str(tmp_path / "printed.yaml")])
    assert config == parse("train", arguments)
    assert config.model.depth == 3


def test_a_script_is_the_same_job():
    command = [sys.executable, ROOT / "jobs/train.py", "--modle.depth", "3"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "did you mean model.depth?" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("bad; mend it"), 2),
        (WorkMissingError("2 missing"), 4),
        (KeyboardInterrupt(), 130),
        (KeyError("x"), 1),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code):
    def fail(job, config):
        raise error

    monkeypatch.setattr(cli, "run_job", fail)
    assert main(["cohort", "--output", "x"]) == code
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == (code == 1)


def test_what_an_error_quotes_of_a_file_breaks_no_line_and_moves_no_cursor(capsys):
    def work():
        raise UserError("key 'a\r\x1b[2J\u2028\udcff' of\n  sub-é.json is not known")

    assert cli.guarded(work) == 2
    assert capsys.readouterr().err == "voxfleet: error: key 'a\\r\\x1b[2J\\u2028\\udcff' of sub-é.json is not known\n"
