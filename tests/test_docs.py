"""The code in the documentation runs, and the commands in it name settings that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from typer.main import get_command

from firesteel import Config, Task, check_environment
from firesteel.cli import app
from firesteel.config import PRESETS, Section, parse_overrides
from firesteel.recipes import load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def train_commands() -> list[str]:
    blocks = [block.replace("\\\n", " ") for page in PAGES for block in code_blocks(page, "bash")]
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith("firesteel train")]


def all_commands() -> list[str]:
    """Every `firesteel COMMAND ARGUMENT...` of the pages, in a block or in a sentence."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    lines = [
        line.partition(" #")[0].strip()
        for page in PAGES
        for block in code_blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    named = [command for text in texts for command in re.findall(r"`(firesteel [^`]+)`", text)]
    found = [line for line in (*lines, *named) if re.match(r"firesteel [a-z]+ [^`]", line)]
    return sorted({line.replace("seed=0|1|2", "seed=0").replace("\n", " ") for line in found})


def settings_of(cls: Any, prefix: str = "") -> dict[str, bool]:
    """The dotted names of all settings; True for those that hold names of their own (`options`)."""
    found: dict[str, bool] = {}
    for name, field in cls.model_fields.items():
        sections = [each for each in (field.annotation, *get_args(field.annotation)) if hasattr(each, "model_fields")]
        found[prefix + name] = not sections and "dict" in str(field.annotation)
        for section in sections:
            found |= settings_of(section, f"{prefix}{name}.")
    return found


@pytest.fixture(scope="module")
def lock_page() -> dict[str, Any]:
    """The names that the blocks of "Write your own" define, after all of them ran in order."""
    namespace: dict[str, Any] = {"__name__": "lock_page"}
    for block in code_blocks(ROOT / "docs" / "environments.md", "python"):
        exec(compile(block, "docs/environments.md", "exec"), namespace)
    return namespace


def test_the_environment_of_the_documentation_plays_as_it_says(lock_page: dict[str, Any]) -> None:
    lock = lock_page["Lock"]()
    (task,) = lock_page["Lock"].tasks("train", count=1)
    assert isinstance(task, Task)
    assert lock.reset(task, seed=0).text == "0 of 3 lights are on."
    first, second, third = lock.code
    assert lock.step(first).info == {"success": False, "score": 1 / 3, "valid": True}

    fork = lock.fork()
    assert fork.step(first).observation.text == "0 of 3 lights are on."  # a wrong button switches all lights off
    assert lock.step(second).observation.text == "2 of 3 lights are on."
    last = lock.step(third)
    assert (last.reward, last.terminated, last.info["success"]) == (1.0, True, True)
    assert lock.step("jump").info["valid"] is False


def test_the_environment_of_the_documentation_passes_the_public_check(lock_page: dict[str, Any]) -> None:
    check_environment(lock_page["Lock"])


def test_every_documented_check_shows_its_report() -> None:
    blocks = [block for page in PAGES for block in code_blocks(page, "python")]
    calls = [line for block in blocks for line in block.splitlines() if "check_environment(" in line]
    assert len(calls) >= 2 and all(line.startswith("print(check_environment(") for line in calls)


def test_there_are_train_commands_to_check() -> None:
    assert len(train_commands()) >= 3


def shown_config() -> Config:
    """The settings that docs/spark_rare.md shows as `rare.yaml`."""
    (block,) = code_blocks(ROOT / "docs" / "spark_rare.md", "yaml")
    return Config().updated(yaml.safe_load(block))


@pytest.mark.parametrize("command", train_commands())
def test_the_settings_of_every_documented_command_exist(command: str) -> None:
    _, _, recipe, *arguments = shlex.split(re.sub(r" --(?:jobs|seeds) \d+", "", command))
    settings = [argument for argument in arguments if not argument.startswith("--")]
    config = shown_config() if recipe == "rare.yaml" else load_recipe(recipe).config()
    config.updated(parse_overrides(settings))


@pytest.mark.parametrize("command", all_commands())
def test_the_command_and_the_options_of_every_documented_command_exist(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    found = get_command(app).commands[name]
    while hasattr(found, "commands"):
        name, *arguments = arguments
        found = found.commands[name]
    settings = found.make_context(name, arguments).params.get("settings") or []
    if name in ("evaluate", "rollout", "collect"):
        Config().updated(parse_overrides([each for each in settings if each != "[key=value" and "..." not in each]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    known = settings_of(Config)
    for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        for name in re.findall(r"(?<![\w/.-])[a-z_]+(?:\.[a-z_]+)+(?=[=:.*, ]|$)", span):
            parent, _, last = name.rpartition(".")
            if name.partition(".")[0] in known and last not in ("py", "md", "yaml", "json", "jsonl"):
                assert name in known or known.get(parent), name


def test_the_example_of_the_readme_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = code_blocks(ROOT / "README.md", "python")
    trained: list[Config] = []
    monkeypatch.setattr("firesteel.train", trained.append, raising=False)
    exec(block, {})
    (config,) = trained
    assert (config.name, config.steps) == ("mine", 20) and config.model.path is not None


def test_the_table_of_the_two_spark_settings_is_true() -> None:
    preset, default = Config.build(PRESETS["spark"]), Config()
    assert (preset.advantage.weighting, default.advantage.weighting) == ("leaf", "path")
    assert (preset.advantage.baseline, default.advantage.baseline) == ("group_mean", "leave_one_root_out")
    assert (preset.advantage.over, preset.advantage.std) == ("step", "sample")
    assert (default.advantage.over, default.advantage.std) == ("leaf", "none")
    assert (preset.rollout.pad_groups, default.rollout.pad_groups) == (True, False)
    assert (preset.reward.success, preset.reward.invalid_penalty) == (10.0, 0.1)
    assert (default.reward.success, default.reward.invalid_penalty) == (1.0, 0.01)
    assert (preset.loss.kl_coef, preset.loss.entropy_coef, preset.loss.dual_clip) == (0.01, 0.001, 3.0)
    assert (default.loss.kl_coef, default.loss.entropy_coef, default.loss.dual_clip) == (0.0, 0.0, None)
    assert (preset.context.mode, preset.context.history_length, default.context.mode) == ("window", 5, "full")
    for rollout in (preset.rollout, default.rollout):
        assert (rollout.num_leaves, rollout.num_roots, rollout.width, rollout.max_turns) == (8, 4, 2, 30)


def test_every_section_of_the_settings_has_a_place_in_the_documentation() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: firesteel\.config\.(\w+)$", text, re.MULTILINE)
    sections = {cls.__name__ for cls in Section.__subclasses__()}
    assert sorted(documented) == sorted(sections)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    files = [target.partition("#")[0] for target in targets if not re.match(r"https?:|#", target)]
    assert [name for name in files if not (page.parent / name).exists()] == []
