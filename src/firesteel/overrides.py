"""Settings as text: key=value arguments, YAML, and layers that are merged."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import yaml

from firesteel.errors import ConfigError

NAMED = ("environment", "reward", "curriculum", "rescue")
"""Sections that a name alone stands for: `environment=webshop` is `environment.name=webshop`."""


def in_full(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which a section that is only named is written out."""
    return {key: {"name": value} if key in NAMED and isinstance(value, str) else value for key, value in layer.items()}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries merged key by key; anything else in `over` replaces. `options` mappings merge too."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """Turns `["learner.lr=1e-4", "seed=1"]` into nested settings; values are read as YAML."""
    result: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{argument}' is not a setting; write key=value, for example learner.lr=1e-4")
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of '{argument}' is not YAML: {error}") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merge(result, in_full(value))
    return result


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as a string; people mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """The content of a YAML document, numbers such as 1e-4 included."""
    return yaml.load(text, Loader=_Loader)
