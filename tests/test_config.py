"""Settings: what is refused and how it is said, overrides, presets, and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from firesteel.advantages import WEIGHTINGS
from firesteel.branching import CRITERIA
from firesteel.config import PRESETS, Config, EnvironmentConfig, Section, merge, parse_overrides, read_yaml
from firesteel.curriculum import CURRICULA
from firesteel.environments import ENVIRONMENTS
from firesteel.errors import ConfigError
from firesteel.learners import OBJECTIVES
from firesteel.models import ARCHITECTURES
from firesteel.prompts import PROMPTS
from firesteel.rewards import REWARDS


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def sections(cls: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section with its place, the optional ones too."""
    yield prefix, cls
    for name, field in cls.model_fields.items():
        options = getattr(field.annotation, "__args__", (field.annotation,))
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from sections(option, f"{prefix}{name}.")


SECTIONS = dict(sections())


# layers


def test_another_environment_starts_without_the_options_of_the_one_before() -> None:
    first = {"environment": {"name": "household", "options": {"size": "small"}, "split": "l0"}}
    same = Config.build(first, {"environment": {"name": "household", "options": {"admissible": False}}})
    assert same.environment.options == {"size": "small", "admissible": False}
    other = Config.build(first, {"environment": {"name": "mine:Env", "options": {"level": 2}}}).environment
    assert (other.options, other.split) == ({"level": 2}, "l0")
    assert same.updated({"environment": {"name": "mine:Env"}}).environment.options == {}


# refusals


def test_there_are_eighteen_sections() -> None:
    assert len(SECTIONS) == 18 and {"model.tiny.", "model.lora.", "rollout."} < set(SECTIONS)
    assert all(issubclass(cls, Section) for cls in SECTIONS.values())


@pytest.mark.parametrize("place", SECTIONS)
def test_an_unknown_key_is_named_with_the_nearest_one_at_any_depth(place: str) -> None:
    real = next(iter(SECTIONS[place].model_fields))
    with pytest.raises(ConfigError) as caught:
        Config.build(nested(f"{place}{real}x", 1))
    known = ", ".join(SECTIONS[place].model_fields)
    assert str(caught.value) == f"unknown setting '{place}{real}x' (did you mean '{real}'?); known here: {known}"


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.build({"seeed": 1, "rollout": {"num_roots": 0}, "learner": {"lr": "fast"}})
    message = str(caught.value)
    assert "unknown setting 'seeed' (did you mean 'seed'?)" in message
    assert "rollout.num_roots: Input should be greater than or equal to 1 (got 0)" in message
    assert "learner.lr: Input should be a valid number, unable to parse string as a number (got 'fast')" in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", 1.5, "seed: Input should be a valid integer, got a number with a fractional part (got 1.5)"),
        ("seed", {"x": 1}, "seed: Input should be a valid integer (got {'x': 1})"),
        ("rollout", 3, "rollout: Input should be a valid dictionary or instance of RolloutConfig (got 3)"),
        ("data", "a.jsonl", "data: Input should be a valid list (got 'a.jsonl')"),
        ("save_trees", "maybe", "save_trees: Input should be a valid boolean, unable to interpret input (got 'maybe')"),
        ("learner.betas", [0.9], "learner.betas.1: Field required (got [0.9])"),
        ("learner.lr", 0, "learner.lr: Input should be greater than 0 (got 0)"),
        ("learner.lr", float("nan"), "learner.lr: Input should be a finite number (got nan)"),
        ("rollout.top_p", 1.5, "rollout.top_p: Input should be less than or equal to 1 (got 1.5)"),
        ("context.mode", "windows", "context.mode: Input should be 'full' or 'window' (got 'windows')"),
        ("model.lora.rank", 0, "model.lora.rank: Input should be greater than or equal to 1 (got 0)"),
        ("rollout.width", 0, "rollout: width (B) must be at least 1, got 0; 1 never branches"),
    ],
)
def test_wrong_values_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.build(nested(path, value))
    assert str(caught.value) == message


def test_more_roots_than_leaves_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.build({"rollout": {"num_roots": 5, "num_leaves": 4}})
    assert str(caught.value) == (
        "rollout: num_roots (M = 5) must not exceed num_leaves (N = 4): every root is a leaf to begin with; "
        "raise num_leaves or lower num_roots"
    )
    assert Config.build({"rollout": {"num_roots": 4, "num_leaves": 4, "width": 1}}).rollout.num_roots == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout": {"top_k": 5}}, "rollout.top_k/top_p cut the distribution"),
        ({"rollout": {"top_p": 0.9}}, "rollout.top_k/top_p cut the distribution"),
        ({"rollout": {"temperature": 0}}, "rollout.temperature must be above 0 for training"),
        ({"rollout": {"vote": True}}, "set evaluation.vote instead"),
        ({"learner": {"prompt_weight": 0.2}}, "learner.prompt_weight is for learner.kind 'sft'"),
    ],
)
def test_contradictions_are_refused_where_they_would_train(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.build(settings)
    Config.build(settings, {"learner": {"kind": "sft"}})


def test_assignment_is_checked_too() -> None:
    config = Config()
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        config.rollout.num_leaves = 0


# documentation


@pytest.mark.parametrize("place", SECTIONS)
def test_every_field_says_what_it_is(place: str) -> None:
    assert SECTIONS[place].__doc__
    for name, field in SECTIONS[place].model_fields.items():
        assert field.description, f"{place}{name}"
        assert field.description.strip()[-1] in ".)", f"{place}{name} ends without a full stop"


def test_defaults_are_names_that_exist() -> None:
    config = Config()
    assert config.environment.name in ENVIRONMENTS and config.rollout.criterion in CRITERIA
    assert config.reward.name in REWARDS and config.curriculum.name in CURRICULA and config.context.prompts in PROMPTS
    choices = {
        "learner.kind": OBJECTIVES, "advantage.weighting": WEIGHTINGS, "model.tiny.architecture": ARCHITECTURES
    }  # fmt: skip
    for path, table in choices.items():
        place, name = path.rsplit(".", 1)
        annotation: Any = SECTIONS[f"{place}."].model_fields[name].annotation
        assert set(annotation.__args__) == set(table)


# layers and overrides


def test_merging_by_hand() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    over = {"a": {"c": [3]}, "d": {"e": 1}}
    assert merge(base, over) == {"a": {"b": 1, "c": [3]}, "d": {"e": 1}}
    merge(base, over)["a"]["c"].append(9)
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": None} and over["a"] == {"c": [3]}


def test_later_layers_win_and_an_update_keeps_the_rest() -> None:
    config = Config.build(
        PRESETS["spark"], {"rollout": {"num_leaves": 16}}, {"environment": {"options": {"size": "small"}}}
    )
    assert (config.rollout.num_leaves, config.rollout.num_roots, config.reward.success) == (16, 4, 10.0)
    changed = config.updated({"environment": {"options": {"admissible": False}}, "seed": 3})
    assert changed.environment.options == {"size": "small", "admissible": False}
    assert (changed.rollout, changed.seed, config.seed) == (config.rollout, 3, 0)
    assert config.updated({"model": {"tiny": {"hidden": 64}}}).updated({"model": {"tiny": None}}).model.tiny is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("a=1", 1),
        ("a=-3", -3),
        ("a=1.5", 1.5),
        ("a=1e-4", 1e-4),
        ("a=-2E+3", -2000.0),
        ("a=.5e1", 5.0),
        ("a=1.e2", 100.0),
        ("a=text", "text"),
        ("a=1e", "1e"),
        ("a=e5", "e5"),
        ("a=v1e5", "v1e5"),
        ("a=5e-3x", "5e-3x"),
        ("a=null", None),
        ("a=", None),
        ("a=true", True),
        ("a='1'", "1"),
        ("a=[1, 1e-3, x]", [1, 1e-3, "x"]),
        ("a={b: 1e-2}", {"b": 1e-2}),
        ("a=x=y", "x=y"),
        ("a=./models/qwen", "./models/qwen"),
    ],
)
def test_overrides_are_read_as_people_mean_them(argument: str, value: Any) -> None:
    (read,) = parse_overrides([argument]).values()
    assert (read, type(read)) == (value, type(value))


def test_overrides_nest_and_the_last_one_wins() -> None:
    arguments = [
        "rollout.num_leaves=4",
        "rollout.width=3",
        "seed=1",
        "seed=2",
        "rollout.criterion_options={probability: 1e-1}",
    ]
    assert parse_overrides(arguments) == {
        "rollout": {"num_leaves": 4, "width": 3, "criterion_options": {"probability": 0.1}},
        "seed": 2,
    }
    config = Config.build(
        parse_overrides([*arguments, "learner.lr=1e-4", "model.lora.rank=4", "learner.betas=[9e-1, 0.99]"])
    )
    assert (config.learner.lr, config.learner.betas) == (1e-4, (0.9, 0.99))
    assert config.model.lora is not None and config.model.lora.rank == 4
    assert config.rollout.criterion_options == {"probability": 0.1}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("seed", "'seed' is not a setting; write key=value"),
        ("=1", "'=1' is not a setting"),
        ("data=[a", "the value of 'data=[a' is not YAML"),
    ],
)
def test_arguments_that_are_no_settings_are_named(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides([argument])
    assert message in str(caught.value)


# presets and files


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name: str) -> None:
    Config.build(PRESETS[name])


def test_the_spark_preset_is_the_papers() -> None:
    config = Config.build(PRESETS["spark"])
    assert (config.rollout.num_leaves, config.rollout.num_roots, config.rollout.width) == (8, 4, 2)
    assert (config.reward.success, config.reward.invalid_penalty) == (10.0, 0.1)
    assert (config.advantage.std, config.advantage.over, config.advantage.eps) == ("sample", "step", 1e-6)
    assert (config.loss.clip_low, config.loss.clip_high, config.loss.dual_clip) == (0.2, 0.2, 3.0)
    assert (config.loss.kl, config.loss.kl_coef, config.learner.minibatch_rows) == ("k3", 0.01, 256)


CONFIGS = [
    {},
    PRESETS["spark"],
    {
        "model": {"tiny": {}, "lora": {"target_modules": ["q_proj"]}},
        "rollout": {"criterion_options": {"probability": 1e-5}},
    },
]


@pytest.mark.parametrize("settings", CONFIGS)
def test_yaml_gives_the_same_config_back(settings: dict[str, Any], tmp_path: Path) -> None:
    config = Config.build(settings)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert Config.load(file) == config
    assert Config.build(config.model_dump()) == config


def test_a_file_of_a_person_reads_numbers_as_numbers(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "learner: {lr: 3e-4}\nrollout: {criterion_options: {probability: 1e-1}}\nname: é\n", encoding="utf-8"
    )
    config = Config.load(file)
    assert (config.learner.lr, config.rollout.criterion_options, config.name) == (3e-4, {"probability": 0.1}, "é")
    assert yaml.safe_load("1e-1") == "1e-1" and read_yaml("1e-1") == 0.1  # nothing was changed for other readers


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1, 2]", "must hold a mapping of settings, got list"), ("a: [", "is not YAML"), ("", "got NoneType")],
)
def test_files_that_hold_no_settings_are_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Config.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config file '.*none.yaml' does not exist"):
        Config.load(tmp_path / "none.yaml")


def test_a_section_may_be_given_by_its_name_alone() -> None:
    layers = [{"environment": {"name": "webshop", "options": {"pages": "rich"}}}, {"environment": "household"}]
    assert Config.build(*layers).environment == EnvironmentConfig(name="household")
    overrides = parse_overrides(["environment=my_module:MyEnv", "environment.options.size=3", "reward=score"])
    assert overrides == {
        "environment": {"name": "my_module:MyEnv", "options": {"size": 3}}, "reward": {"name": "score"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="model"):
        Config.build({"model": "gpt"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learner.lr", float("inf"), "learner.lr: .*finite"),
        ("learner.betas", [1.5, 0.9], "learner.betas.0: .*less than 1"),
        ("learner.weight_decay", -1.0, "learner.weight_decay: .*greater than or equal to 0"),
        ("learner.weight_decay", float("nan"), "learner.weight_decay: .*finite"),
        ("loss.dual_clip", -3.0, "loss.dual_clip: .*greater than 1"),
        ("loss.kl_coef", float("inf"), "loss.kl_coef: .*finite"),
        ("rollout.temperature", float("inf"), "rollout.temperature: .*finite"),
        ("model.tiny.heads", 0, "model.tiny.heads: .*greater than or equal to 1"),
        ("context.max_prompt_tokens", -1, "context.max_prompt_tokens: .*greater than or equal to 1"),
        ("token_budget", -1, "token_budget: .*greater than or equal to 1"),
    ],
)
def test_numbers_without_sense_are_refused_by_name(key, value, message):
    settings = value
    for part in reversed(key.split(".")):
        settings = {part: settings}
    with pytest.raises(ConfigError, match=message):
        Config.build(settings)
