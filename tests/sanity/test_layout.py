"""The layout of design.md: import levels, config files, the stdlib `platform`, errors that pickle."""

import ast
import importlib
import inspect
import pickle
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import voxfleet
from voxfleet import errors
from voxfleet.cli import JOBS, parse

SOURCE = Path(voxfleet.__file__).parent
ROOT_CLUSTER = SOURCE.parents[1] / "ray_cluster.yaml"
CONFIGS = [*sorted((SOURCE.parents[1] / "configs").rglob("*.yaml")), ROOT_CLUSTER]
# a package may import those of lower levels; of its own level only itself, and train may use packages
LEVELS = {
    **dict.fromkeys(["documents", "errors", "storage"], 0),
    **dict.fromkeys(["models", "diffusion", "metrics", "foreign", "growth"], 1),
    **dict.fromkeys(["data", "packages", "train", "tracking", "report", "search"], 2),
    "config": 3,
    "engine": 4,
    "cli": 5,
}
BESIDE = {("train", "packages"), ("storage", "errors"), ("documents", "errors")}
ONLY_IN = {"ray": "engine", "mlflow": "tracking/mlflow.py"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(path: Path, imports: set[str]) -> list[str]:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    wrong = []
    for name in imports:
        root, _, rest = name.partition(".")
        part = rest.split(".")[0]
        known = root == "voxfleet" and part in LEVELS and part != own
        if known and LEVELS[part] >= LEVELS[own] and (own, part) not in BESIDE:
            wrong.append(f"{own} imports {part}")
        if root in ONLY_IN and not path.relative_to(SOURCE).as_posix().startswith(ONLY_IN[root]):
            wrong.append(f"{path.relative_to(SOURCE)} imports {root}")
    return wrong


def test_imports_go_down_only():
    files = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]
    assert len(files) > 30
    assert {p.relative_to(SOURCE).parts[0].removesuffix(".py") for p in files} == set(LEVELS)
    assert [wrong for path in files for wrong in violations(path, imports_of(path))] == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("models/dit3d.py", "voxfleet.train.step"),
        ("data/shards.py", "voxfleet.train.state"),
        ("data/shards.py", "ray.data"),
        ("engine/train.py", "mlflow"),
        ("engine/train.py", "voxfleet.cli"),
    ],
)
def test_a_forbidden_import_is_noticed(file, name):
    assert violations(SOURCE / file, {name})


def test_platform_is_the_standard_librarys():
    assert Path(platform.__file__).parent == Path(inspect.__file__).parent
    root = SOURCE.parent
    assert root.name == "platform"
    assert [entry.name for entry in root.iterdir() if entry.suffix == ".py"] == []


def test_importing_voxfleet_is_light():
    code = "import sys, voxfleet; print([m for m in ('torch', 'ray', 'monai', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_no_job_imports_what_takes_seconds_before_it_is_used():
    """Every worker process of a job imports what the job does."""
    code = """
import importlib, pkgutil, sys
import voxfleet.engine
for module in pkgutil.iter_modules(voxfleet.engine.__path__):
    importlib.import_module(f"voxfleet.engine.{module.name}")
print([m for m in ("monai", "mlflow", "torch._dynamo") if m in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_error_survives_pickling():
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert len(classes) >= 3
    for cls in classes:
        again = pickle.loads(pickle.dumps(cls("what, where, what to do")))
        assert type(again) is cls
        assert str(again) == "what, where, what to do"
        assert again.exit_code == cls.exit_code


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_file_loads_and_opens_with_what_a_user_needs(path):
    if path != ROOT_CLUSTER and "cluster" not in path.parts:  # those start clusters
        parse(path.parent.name, ["--config", str(path)])
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("voxfleet", "Hardware:", "Time:", "Expect:"):
        assert any(word in line for line in head), f"{path} does not say {word}"


def test_every_job_has_a_demo_configuration_a_script_and_an_engine():
    root = SOURCE.parents[1]
    for name, job in JOBS.items():
        assert (root / "configs" / name / "demo.yaml").exists()
        script = (root / "jobs" / f"{name.replace('-', '_')}.py").read_text()
        assert f'main(["{name}"' in script
        assert callable(importlib.import_module(f"voxfleet.engine.{job.engine}").run)


def test_ray_versions_and_torch_are_pinned_exactly():
    pins = (SOURCE.parents[1] / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins
    assert "ray==2.60.0" in pins
    assert all("==" in pin for pin in pins if pin and not pin.startswith("#"))


def test_no_file_is_longer_than_500_lines():
    assert {p.name: n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500} == {}
