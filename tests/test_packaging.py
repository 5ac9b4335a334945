"""The mapping of folders to packages, its guards, and what an import costs."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
MAPPED = ("policies", "training", "trainees", "checkpoints")
HEAVY = (
    "gymnasium",
    "mlxtend",
    "plotly",
    "ray",
    "rich",
    "sklearn",
    "stable_baselines3",
    "torchvision",
    "transformers",
    "tyro",
)


def folders_with_code() -> set[str]:
    tops = ("lrenv", *MAPPED)
    files = [file for top in tops for file in (ROOT / top).rglob("*.py")]
    return {file.parent.relative_to(ROOT).as_posix() for file in files}


def test_every_folder_is_a_listed_package():
    folders = {SETUPTOOLS["package-dir"][package] for package in SETUPTOOLS["packages"]}

    assert folders == folders_with_code()
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_package_comes_from_its_folder(name):
    package = importlib.import_module(f"lrenv.{name}")

    assert SETUPTOOLS["package-dir"][f"lrenv.{name}"] == name
    assert Path(package.__file__) == ROOT / name / "__init__.py"


@pytest.mark.parametrize("name", MAPPED)
def test_short_name_is_refused(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)

    with pytest.raises(ImportError, match=rf"lrenv\.{name}, got {name}: install the project"):
        importlib.import_module(name)


@pytest.mark.parametrize("statement", ["import lrenv", "from lrenv import LearnedLR, load_policy"])
def test_import_loads_nothing_heavy(statement):
    code = f"import sys; {statement}; print(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
