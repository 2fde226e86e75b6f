"""What a model's directory carries, and how commands that play a model take it up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from firesteel.bundled import recipes_directory
from firesteel.cli_models import evaluation_config
from firesteel.config import Config, parse_overrides
from firesteel.errors import ConfigError, ModelError
from firesteel.model_settings import FILE, read_model_settings, write_model_settings
from firesteel.recipes import load_recipe

HOUSEHOLD = recipes_directory() / "models" / "household"
TRAINED = Config.build(
    {
        "seed": 5,
        "environment": {"name": "household", "options": {"size": "small", "admissible": False}, "num_tasks": 3},
        "context": {"mode": "window", "prompts": "compact", "template_options": {"thinking": False}},
        "rollout": {"max_turns": 7, "max_response_tokens": 9, "num_leaves": 5},
        "evaluation": {"temperature": 0.7, "test_split": "l0"},
    }
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that carries the settings of `TRAINED`, and has no weights."""
    (tmp_path / "model").mkdir()
    write_model_settings(TRAINED, tmp_path / "model")
    return tmp_path / "model"


def evaluated(directory: Path | str, *settings: str) -> Config:
    return evaluation_config(str(directory), parse_overrides(list(settings)))


def test_a_file_holds_how_the_model_was_played_and_nothing_else(model: Path) -> None:
    carried = read_model_settings(model / FILE)
    assert {key: sorted(value) for key, value in carried.items() if key != "context"} == {
        "environment": ["name", "options"],
        "rollout": ["max_response_tokens", "max_turns"],
        "evaluation": ["temperature"],
    }
    assert carried["context"] == TRAINED.context.model_dump()
    # what a file says beside is passed over: above all a model must not allow its own code
    content = yaml.safe_load((model / FILE).read_text()) | {"seed": 9, "model": {"trust_remote_code": True}}
    (model / FILE).write_text(yaml.safe_dump(content))
    assert read_model_settings(model / FILE) == carried
    config = evaluated(model)
    assert (config.seed, config.model.trust_remote_code) == (0, False)


def test_what_a_model_carries_lies_under_the_users_settings(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = evaluated(model, "environment.name=household", "rollout.max_turns=2", "environment.options.size=full")
    assert config.environment.options == {"size": "full", "admissible": False}
    assert (config.context, config.rollout.max_turns, config.rollout.max_response_tokens) == (TRAINED.context, 2, 9)
    assert (config.evaluation.temperature, config.evaluation.test_split, config.rollout.num_leaves) == (0.7, None, 8)
    out, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert out == ""
    assert line == (
        f"from {model / FILE}: environment.options.admissible=false context.mode=window context.prompts=compact "
        "context.template_options.thinking=false rollout.max_response_tokens=9 evaluation.temperature=0.7"
    )


def test_another_environment_gets_no_options_of_the_models_own(model: Path) -> None:
    config = evaluated(model, "environment.name=scienceworld", "environment.options.simplifications=easy")
    assert config.environment.options == {"simplifications": "easy"}
    assert (config.context, config.rollout.max_turns) == (TRAINED.context, 7)


def test_a_model_without_the_file_is_played_with_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(tmp_path) == Config().updated({"model": {"path": str(tmp_path)}})
    assert capsys.readouterr().err == ""


def test_an_adapter_brings_its_base_model_and_its_settings(model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    write_model_settings(Config(), base)
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    config = evaluated(model)
    assert config.model.lora is not None
    assert (config.model.path, config.model.lora.adapter) == (str(base), str(model))
    assert config.context == TRAINED.context
    assert evaluated(base, f"model.lora.adapter={model}") == config
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not name its base model"):
        evaluated(model)


@pytest.mark.parametrize("key", ["environment.name", "environment.options.checkers"])
def test_code_that_a_file_names_must_be_named_by_the_user(model: Path, key: str) -> None:
    section, _, name = key.partition(".")
    content = yaml.safe_load((model / FILE).read_text())
    if name == "name":
        content[section][name] = "subprocess:Popen"
    else:
        content[section]["options"]["checkers"] = ["subprocess:Popen"]
    (model / FILE).write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=f"only you can allow that to run: add {key}=.*subprocess:Popen"):
        evaluated(model)
    setting = f"{key}=subprocess:Popen" if name == "name" else f"{key}=[subprocess:Popen]"
    assert evaluated(model, setting).environment.options["size"] == "small"
    assert evaluated(model, "environment.name=webshop").environment.options == {}


def test_a_damaged_file_is_named(model: Path) -> None:
    (model / FILE).write_text("context: {prompt: compact}")
    with pytest.raises(ConfigError, match=r"firesteel.yaml' are damaged: unknown setting 'context.prompt'"):
        evaluated(model)


def test_the_bundled_model_carries_the_settings_of_its_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = load_recipe("household_coldstart").config()
    monkeypatch.chdir(tmp_path)  # as for an installed package: no `recipes` here
    config = evaluated("recipes/models/household", "environment.name=household")
    assert config.model.path == str(HOUSEHOLD)
    assert (config.environment.name, config.environment.options) == ("household", recipe.environment.options)
    assert config.context == recipe.context
    assert config.evaluation.temperature == recipe.evaluation.temperature
    for name in ("max_turns", "max_response_tokens"):
        assert getattr(config.rollout, name) == getattr(recipe.rollout, name)
    assert sum(file.stat().st_size for file in HOUSEHOLD.iterdir()) <= 8_000_000
