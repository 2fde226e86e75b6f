"""The model that a command names: a run, a directory, one that comes with the recipes, or a Hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firesteel.bundled import bundled
from firesteel.cli_output import console
from firesteel.config import Config
from firesteel.errors import FiresteelError, StoreError
from firesteel.plugins import nearest


def evaluation_config(model: str, overrides: dict[str, Any]) -> Config:
    """The configuration of a run with its trained model, or what another model carries over the defaults."""
    from firesteel.model_settings import model_of, with_model_settings

    directory = model_directory(model, str(overrides.get("runs_dir", Config().runs_dir)))
    if (directory / "config.yaml").exists():
        stored = Config.load(directory / "config.yaml")
        trained = directory / "model"
        if not trained.is_dir():
            raise FiresteelError(f"run '{model}' has no trained model yet; finish it with --resume {model}")
        if stored.model.lora is not None:
            layer: dict[str, Any] = {"model": {"lora": {"adapter": str(trained)}}}
        else:
            layer = {"model": {"path": str(trained), "tiny": None}}
        return stored.updated(layer, overrides)
    config, taken = with_model_settings(model_of(directory), overrides)
    if taken:
        console.print(taken, markup=False, highlight=False, soft_wrap=True)
    return config


def model_directory(model: str, runs_dir: str) -> Path:
    """Where a run or a model lies, or its Hub name as it is; `recipes/...` may lie among the installed recipes.

    Raises:
        StoreError: it can only be a directory, and there is none.
    """
    from firesteel.models import is_path
    from firesteel.run import runs_in

    directory = bundled(Path(model).expanduser())
    if directory.is_dir() or not (is_path(model) or directory.is_relative_to(runs_dir)):
        return directory
    parent = directory.parent if directory.parent.is_dir() else Path(runs_dir)
    known = runs_in(parent)
    hint = nearest(directory.name, [*known, *(each.name for each in sorted(parent.glob("*/")))])
    runs = f"the runs {', '.join(known[:12])}" if known else "no run"
    raise StoreError(f"'{model}': there is no such directory{hint}; '{parent}' has {runs}")
