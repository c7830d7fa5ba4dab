"""What the README and the pages of docs/ tell people to do: commands run, keys exist, links lead somewhere."""

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pages
import pytest
import torch

from voxfleet.cli import CLUSTER, DOCTOR, JOBS, SUBMIT, _named, config_class, main, parse
from voxfleet.config.submission import split_arguments
from voxfleet.data.shards import read_manifest, read_shard, tensors
from voxfleet.packages import load_autoencoder

ALL = [
    pytest.param(words, id=f"{page}-{' '.join(words[:2])}") for page in pages.PAGES for words in pages.commands(page)
]
TO_RUN = [page for page in pages.PAGES if page != "README" and any(map(pages.of_a_job, pages.commands(page)))]
ONE_WORKER = ["--resources.workers", "1", "--resources.cpus_per_worker", "1"]
SMALLER = {  # than the configurations of the pages, beside what makes the demo tiny
    "train-vae": [
        *["--loss.adversarial_start", "1", "--loss.discriminator_layers", "2"],
        *["--trainer.validate_every", "1", "--trainer.precision", "float32"],
    ],
    "train": [
        *["--model.window_size", "null", "--trainer.compile", "false", "--trainer.precision", "float32"],
        *["--trainer.validate_every", "1", *ONE_WORKER],
    ],
    "tune": ["--search.trials", "1", "--search.max_samples", "12", "--resources.gpus_per_worker", "0"],
    "generate": ["--campaign.mixture", "null", "--decode_batch_size", "2", *ONE_WORKER],
    "latents": ["--umap", "false"],
    "scale": [
        *["--calls", "40", "--commits", "3", "--gpus", "[1,4]"],
        *["--training.steps", "500", "--campaign.total", "999"],
    ],
}


def ours(job, arguments):
    """Whether the arguments are those of a job: dots stand for what the page said before."""
    if "..." in arguments:
        demo = ["--config", f"configs/{job}/demo.yaml"]
        arguments = [*demo, *(argument for argument in arguments if argument != "...")]
    return isinstance(parse(job, _named({**JOBS, **CLUSTER}[job], arguments)), config_class(job))


@pytest.mark.parametrize("words", ALL)
def test_a_command_of_the_pages_is_one_that_exists(words, monkeypatch):
    monkeypatch.chdir(pages.ROOT)
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
        assert f"\n{arguments[0]}:" in (pages.ROOT / "Makefile").read_text()
    elif program == "ray":
        script, *own = itertools.dropwhile(lambda word: not word.startswith("jobs/"), arguments)
        assert (pages.ROOT / script).exists()
        assert ours(Path(script).stem.replace("_", "-"), own)
    else:  # the scripts that people come from, and settings
        assert program in ("python", "export")


def keys_of(cls, prefix=""):
    """The keys of a configuration, dotted, groups too."""
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}"
        for inner in filter(dataclasses.is_dataclass, (field.type, *typing.get_args(field.type))):
            yield from keys_of(inner, f"{prefix}{field.name}.")


@pytest.mark.parametrize("page", pages.PAGES)
def test_keys_that_a_page_names_are_keys_of_a_job(page):
    known = {key for job in (*JOBS, *CLUSTER) for key in keys_of(config_class(job))}
    groups = {key.partition(".")[0] for key in known if "." in key}
    named = re.findall(r"`(?:--)?([a-z_]+(?:\.(?!json|safetensors)[a-z_]+)+)[ `]", pages.PAGES[page].read_text())
    assert {name for name in named if name.partition(".")[0] in groups} <= known


def test_there_are_commands_on_every_page_that_tells_what_to_do():
    assert {"data", "training", "search", "generation", "evaluation", "from-scripts", "scaling"} == set(TO_RUN)


class Reader:
    """Somebody in a folder of their own who does what the pages say, with volumes as small as the tests'."""

    def __init__(self, folder, workspace):
        self.folder, self._workspace = folder, workspace
        cohort = workspace.demo / "cohort"
        self._theirs = {
            "/data/my-study": str(cohort),
            "work/labels": str(cohort / "derivatives" / "simulation"),
            "[sub-01,sub-02]": "[sub-0001,sub-0002]",
        }

    def does(self, page, more=()):
        """Run the commands of a page that are jobs, in their order, with ``more`` arguments of some."""
        smaller, before = {**SMALLER, **dict(more)}, {}
        for _, job, *arguments in filter(pages.of_a_job, pages.commands(page)):
            if "..." in arguments:
                arguments = [*before[job], *(argument for argument in arguments if argument != "...")]
            before.setdefault(job, arguments)
            arguments = [self._theirs.get(argument, argument) for argument in arguments]
            arguments += [*self._workspace.smaller(job), *smaller.get(job, ())]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(self.folder)
                assert main([job, *arguments]) == 0, f"{page}: {job} {arguments}"


@pytest.fixture(scope="module")
def after_the_readme(workspace, tmp_path_factory):
    """The folder of a reader who did all that the README says."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(pages.ROOT / "configs")
    Reader(folder, workspace).does("README")
    return folder


@pytest.fixture
def reader(after_the_readme, workspace, tmp_path):
    """A reader who goes on from there."""
    shutil.copytree(after_the_readme, tmp_path / "reader", symlinks=True)
    return Reader(tmp_path / "reader", workspace)


def bring_an_autoencoder_and_latents(reader):
    """What the page of data imports, in place of what the README made."""
    work, theirs = reader.folder / "work", reader.folder / "work" / "files"
    torch.save(load_autoencoder(str(work / "vae")).model.state_dict(), reader.folder / "autoencoder.pt")
    architecture = json.loads((work / "vae" / "config.json").read_text())["architecture"]
    manifest = read_manifest(str(work / "latents"), "latents")
    theirs.mkdir()
    lines = ["subject_id,label,split,file"]
    for table in map(read_shard, manifest.files(str(work / "latents"))):
        for row, mu in zip(table.to_pylist(), tensors(table, "mu"), strict=True):
            torch.save({"mu": torch.from_numpy(mu.copy())}, theirs / f"{row['subject_id']}.pt")
            lines.append(f"{row['subject_id']},{manifest.classes[row['label']]},{row['split']},{row['subject_id']}.pt")
    (work / "latents.csv").write_text("\n".join(lines))
    for name in ("vae", "latents"):
        shutil.rmtree(work / name)
    return {"import-vae": [f"--model.{key}={json.dumps(value)}" for key, value in architecture.items()]}


def bring_two_sets(reader):
    """What the page of evaluation compares."""
    for name in "ab":
        shutil.copytree(reader.folder / "work" / "synthetic", reader.folder / "runs" / name)
    return {}


BRINGS = {"data": bring_an_autoencoder_and_latents, "evaluation": bring_two_sets}


@pytest.mark.slow
def test_the_commands_of_the_readme_run(after_the_readme):
    page = (after_the_readme / "work" / "report" / "report.html").read_text()
    assert "synthetic volumes" in page


@pytest.mark.matrix
@pytest.mark.parametrize("page", TO_RUN)
def test_the_commands_of_a_page_run_after_those_of_the_readme(reader, page):
    reader.does(page, BRINGS[page](reader) if page in BRINGS else {})


def test_what_a_page_shows_in_python_runs(workspace, monkeypatch):
    monkeypatch.chdir(workspace.root)
    shown = {page: pages.blocks(page, "python") for page in pages.PAGES}
    assert {page for page in shown if shown[page]} == {"README", "formats"}
    for block in itertools.chain.from_iterable(shown.values()):
        exec(block, {})


def test_the_search_of_its_page_is_a_configuration(tmp_path):
    (block,) = pages.blocks("search", "yaml")
    (tmp_path / "search.yaml").write_text(block)
    asked = ["--config", str(tmp_path / "search.yaml"), "--name", "x", "--output", "x", "--data", "x"]
    assert set(parse("tune", asked).search.space) == set(re.findall(r"\w+\.\w+(?=: {[cil])", block))


@pytest.mark.parametrize("page", pages.PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", pages.PAGES[page].read_text()):
        assert link.startswith("https://") or (pages.PAGES[page].parent / link).exists(), link


def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "cluster" / "index.html").exists()
