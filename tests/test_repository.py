"""What holds for the repository as a whole: sizes, public names, recipes, the wheel, and words that stay out."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import firesteel
from firesteel.config import Config
from firesteel.environments.bfcl.package import VERSION
from firesteel.recipes import load_recipe, recipe_names, recipe_summaries

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*") if path.suffix in {".py", ".yaml", ".yml"})
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".sh", ".html", ".svg", ".json", ".jsonl", ""}
FOLDERS = ("src", "tests", "recipes", "benchmarks", "tools", "docs", ".github", ".ci")


def run_python(program: str, *, cwd: Path, pythonpath: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(pythonpath)}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Sizes


def test_files_and_functions_are_short() -> None:
    assert list(load_tool("check_sizes").offenders(ROOT)) == []


def test_the_size_check_sees_what_is_too_long() -> None:
    file_offenders = load_tool("check_sizes").file_offenders
    # A def line and 78 more are 79 lines: allowed. One more is 80: not.
    assert list(file_offenders("def f():\n" + "    a = 1\n" * 78, "f.py")) == []
    assert list(file_offenders("def f():\n" + "    a = 1\n" * 79, "f.py")) == [
        "f.py:1: f has 80 lines; a function has fewer than 80"
    ]
    assert list(file_offenders("a = 1\n" * 499, "a.py")) == []
    assert list(file_offenders("a = 1\n" * 500, "a.py")) == ["a.py: 500 lines; a file has fewer than 500"]


# Public names


def test_all_names_exactly_the_exports() -> None:
    assert sorted(firesteel.__all__) == list(firesteel.__all__)
    assert set(firesteel.__all__) == {*firesteel._EXPORTS, "__version__"}


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((ROOT / "src/firesteel/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == firesteel._EXPORTS


@pytest.mark.parametrize("name", firesteel.__all__)
def test_every_public_name_loads_and_says_what_it_is(name: str) -> None:
    value = getattr(firesteel, name)
    assert value == firesteel.__version__ if name == "__version__" else value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'firesteel' has no attribute 'trian'"):
        _ = firesteel.trian


def test_import_firesteel_does_not_import_torch() -> None:
    program = (
        "import sys, firesteel, firesteel.plugins\n"
        "firesteel.Task, firesteel.Environment, firesteel.FiresteelError\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    result = run_python(program, cwd=ROOT, pythonpath=ROOT / "src")
    assert result.returncode == 0, result.stderr


def test_functions_stay_functions_when_their_modules_are_imported_first() -> None:
    program = (
        "import firesteel.train, firesteel.evaluate, types\n"
        "assert isinstance(firesteel.train, types.FunctionType), firesteel.train\n"
        "assert isinstance(firesteel.evaluate, types.FunctionType), firesteel.evaluate\n"
    )
    result = run_python(program, cwd=ROOT, pythonpath=ROOT / "src")
    assert result.returncode == 0, result.stderr


# Recipes


def test_there_are_recipes() -> None:
    assert RECIPES
    assert [path.stem for path in RECIPES] == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_says_what_it_does_and_its_settings_survive_a_file(name: str, tmp_path: Path) -> None:
    config = load_recipe(name).config()
    assert recipe_summaries()[name].endswith((".", "?", "!"))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    assert Config.load(path) == config
    assert Config.load(path).name == name


EXTRAS = {
    "alfworld": "alfworld", "bfcl": "bfcl", "mmlu_pro": "tools", "scienceworld": "scienceworld",
    "tool_questions": "tools", "webshop": "webshop",
}  # fmt: skip
"""The extra of every environment that needs one."""


@pytest.mark.parametrize("name", recipe_names())
def test_the_first_line_of_a_recipe_names_the_extras_that_it_needs(name: str) -> None:
    wanted = {EXTRAS.get(load_recipe(name).config().environment.name)} - {None}
    source = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
    if re.search(r"\bimport (compare|matplotlib)\b", source):
        wanted.add("plot")
    assert wanted <= set(re.findall(r"\w+", recipe_summaries()[name].partition("Needs the extra")[2]))


# The wheel


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel, built from this tree, is installed without its dependencies."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)]
    result = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = wheels.glob("firesteel-*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    result = subprocess.run([*install, str(wheel)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return target


def test_the_wheel_holds_the_recipes_and_the_type_marker(installed_wheel: Path) -> None:
    package = installed_wheel / "firesteel"
    assert (package / "py.typed").is_file()
    expected = {
        path.relative_to(ROOT / "recipes")
        for path in (ROOT / "recipes").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {
        path.relative_to(package / "recipe_files") for path in (package / "recipe_files").rglob("*") if path.is_file()
    }
    assert {path for path in found if "__pycache__" not in path.parts} == expected


def test_the_wheel_holds_no_tests_and_nothing_outside_the_package(installed_wheel: Path) -> None:
    top = {path.name for path in installed_wheel.iterdir()}
    assert {name for name in top if not name.endswith(".dist-info")} - {"bin"} == {"firesteel"}


def test_the_installed_wheel_is_what_runs_elsewhere(installed_wheel: Path, tmp_path: Path) -> None:
    program = "import firesteel; print(firesteel.__file__, firesteel.__version__)"
    result = run_python(program, cwd=tmp_path, pythonpath=installed_wheel)
    assert result.stdout.split() == [str(installed_wheel / "firesteel" / "__init__.py"), firesteel.__version__]


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"]])
def test_the_command_runs_from_the_installed_wheel(installed_wheel: Path, tmp_path: Path, arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed_wheel)}
    command = [sys.executable, "-m", "firesteel", *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert ("quickstart" if arguments == ["recipes"] else "train") in result.stdout


# Files


def project_files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    top = [path for path in ROOT.iterdir() if path.name != ".git"]
    paths = {path for path in (*inside, *top) if path.is_file() and "__pycache__" not in path.parts}
    return sorted(path for path in paths if path.suffix in TEXT_SUFFIXES)


def test_no_file_names_a_path_of_one_machine_or_leaves_work_open() -> None:
    # Written in pieces, so that this file does not contain what it looks for.
    machine_path = r"(?<![\w./~$}-])/(?:work|home|root|Users)" + "/"
    open_work = r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"
    pattern = re.compile(f"{machine_path}|{open_work}")
    offenders = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert offenders == []


def test_every_dependency_is_pinned_in_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in pins)
    assert pins[0].startswith("torch==")
    pinned = {normalised(line.partition("==")[0]) for line in pins}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    assert {normalised(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in wanted} - pinned == set()


def test_the_version_of_bfcl_is_the_same_everywhere() -> None:
    assert f"bfcl-eval=={VERSION}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def normalised(name: str) -> str:
    """A package name as indexes compare it: "Types_PyYAML" is "types-pyyaml"."""
    return re.sub(r"[-_.]+", "-", name).lower()
