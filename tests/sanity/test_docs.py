"""What the README and the pages of docs/ tell people to do: commands and keys exist, links lead somewhere."""

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from voxfleet.cli import CLUSTER, DOCTOR, JOBS, SUBMIT, _named, config_class, parse
from voxfleet.config.submission import split_arguments

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands():
    """Each command line of the pages, and the page."""
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if not language:
                for line in block.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words and re.match(r"[a-z]", words[0]):
                        yield pytest.param(words, id=f"{page.stem}-{' '.join(words[:2])}")


def ours(job, arguments):
    """Whether the arguments are those of a job: dots stand for what the page said before."""
    if "..." in arguments:
        demo = ["--config", f"configs/{job}/demo.yaml"]
        arguments = [*demo, *(argument for argument in arguments if argument != "...")]
    return isinstance(parse(job, _named({**JOBS, **CLUSTER}[job], arguments)), config_class(job))


@pytest.mark.parametrize("words", commands())
def test_a_command_of_the_pages_is_one_that_exists(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *arguments = words
    if program == "voxfleet" and arguments[0] == SUBMIT:
        mine, of_job = split_arguments(arguments[2:])
        assert ours(SUBMIT, mine)
        assert ours(arguments[1], of_job)
    elif program == "voxfleet":
        job, *own = arguments
        mine, of_job = split_arguments(own) if job == DOCTOR else ([], own)
        assert ours(SUBMIT, mine)
        assert ours(job, [argument for argument in of_job if argument != "--dry-run"])
    elif program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()
    elif program == "ray":
        script, *own = itertools.dropwhile(lambda word: not word.startswith("jobs/"), arguments)
        assert (ROOT / script).exists()
        assert ours(Path(script).stem.replace("_", "-"), own)
    else:  # the scripts that people come from, and settings
        assert program in ("python", "export")


def test_there_are_commands_on_every_page_that_tells_what_to_do():
    told = {words.id.split("-")[0] for words in commands()}
    assert {"README", "data", "training", "search", "generation", "evaluation", "cluster", "from"} <= told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "cluster" / "index.html").exists()
