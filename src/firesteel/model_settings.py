"""The settings that a saved model carries in a `firesteel.yaml` beside its weights: how it was played in training.

They are the defaults of `firesteel evaluate` and `firesteel rollout`; training with `model.path` does not read them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from firesteel.config import Config
from firesteel.errors import ConfigError, ModelError
from firesteel.files import flatten, write_atomic

FILE = "firesteel.yaml"
CARRIED: dict[str, Any] = {
    "environment": {"name", "options"},
    "context": True,
    "rollout": {"max_turns", "max_response_tokens"},
    "evaluation": {"temperature"},
}
"""What is written; anything else in such a file does not count."""

_CODE = re.compile(r"""[="][A-Za-z_][\w.]*:[A-Za-z_]\w*(?:"|$)""")
"""A value of a setting, or of a list in it, that is "package.module:object"."""


def write_model_settings(config: Config, directory: Path) -> None:
    """Writes `firesteel.yaml` into a model's directory."""
    content = config.model_dump(mode="json", include=CARRIED)
    write_atomic(directory / FILE, yaml.safe_dump(content, sort_keys=False).encode())


def read_model_settings(file: Path) -> dict[str, Any]:
    """The settings of such a file."""
    try:
        return Config.load(file).model_dump(include=CARRIED, exclude_unset=True)
    except ConfigError as error:
        raise ConfigError(f"the model's settings in '{file}' are damaged: {error}") from error


def with_model_settings(model: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[Config, str]:
    """The defaults, then what the model (with an adapter: the adapter) carries, then the user's settings.

    Options of an environment that the user replaces by another are dropped. The text is one line that says what was
    taken, or "" where nothing was.

    Raises:
        ConfigError: the file is damaged, or it names code ("package.module:object") that the user did not name.
    """
    without = Config().updated({"model": model}, overrides)
    lora = without.model.lora
    places = [Path(each) for each in (lora.adapter if lora else None, without.model.path) if each is not None]
    file = next((place / FILE for place in places if (place / FILE).is_file()), None)
    if file is None:
        return without, ""
    carried = read_model_settings(file)
    config = Config().updated({"model": model}, carried, overrides)
    taken = _taken(config, without, carried)
    code = [setting for setting in taken if _CODE.search(setting)]
    if code:
        raise ConfigError(f"'{file}' names code, and only you can allow that to run: add {' '.join(code)}")
    return config, f"from {file}: {' '.join(taken)}" if taken else ""


def _taken(config: Config, without: Config, carried: Mapping[str, Any]) -> list[str]:
    """The carried settings that make a difference, as key=value."""
    now, before = flatten(config.model_dump(mode="json")), flatten(without.model_dump(mode="json"))
    changed = {key: now[key] for key in flatten(carried) if key in now and now[key] != before.get(key)}
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()]


def model_of(directory: Path) -> dict[str, Any]:
    """The setting `model` for a directory that holds a model, or an adapter that names its base model."""
    file = directory / "adapter_config.json"
    if not file.exists() or (directory / "config.json").exists():
        return {"path": str(directory)}
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"adapter '{directory}' does not name its base model; name that, and give model.lora.adapter={directory}"
        )
    return {"path": base, "lora": {"adapter": str(directory)}}
