"""Options of built-in environments have the types that their constructors say."""

from __future__ import annotations

from typing import Any

import pytest

from firesteel.config import EnvironmentConfig
from firesteel.environments import ENVIRONMENTS, environment_class, make_environment
from firesteel.environments.pool import environment_maker
from firesteel.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("household", "admissible", "perhaps", "bool"),
        ("household", "admissible", 1, "bool"),
        ("household", "size", 3, "str"),
        ("scienceworld", "java_heap_mb", True, "int"),
        ("scienceworld", "step_timeout_s", "long", "float"),
        ("scienceworld", "task_types", "boil", r"Sequence\[str\] | None"),
        ("webshop", "num_products", "many", r"int | None"),
        ("tool_calls", "terse", "no", "bool"),
        ("bfcl", "end_on_failure", None, "bool"),
        ("tool_questions", "tools", 7, "str"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_before_anything_is_made(
    name: str, option: str, value: Any, wanted: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name}: option '{option}' must be {wanted}.*, got {value!r}"):
        environment_class(name, {option: value})
    with pytest.raises(ConfigError, match=f"option '{option}'"):
        make_environment(name, {option: value})
    with pytest.raises(ConfigError, match=f"option '{option}'"):
        environment_maker(EnvironmentConfig(name=name, options={option: value}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("household", {"size": "small", "admissible": False}),
        ("scienceworld", {"task_types": ["boil"], "step_timeout_s": 5}),
        ("alfworld", {"games": None, "task_types": ("look_at_obj_in_light",)}),
        ("webshop", {"num_products": 10, "path": None}),
        ("tool_calls", {"checker": lambda calls, task: None, "format": "hermes", "num_tools": 5}),
        ("tool_questions", {"tools": {"sums": "calculator"}, "tool_options": {}}),
    ],
)
def test_options_of_the_right_types_pass(name: str, options: dict[str, Any]) -> None:
    assert environment_class(name, options) is environment_class(name)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_options_that_the_constructor_does_not_know_are_left_to_it(name: str) -> None:
    assert environment_class(name, {"unheard_of": 1}) is environment_class(name)
