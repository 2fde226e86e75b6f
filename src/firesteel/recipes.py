"""Finding and running recipes: one short Python file an experiment.

A recipe is a module with a docstring (its help) and `config() -> Config`. `firesteel train NAME key=value` trains that
configuration with the settings replaced. A recipe that is more than one training (stages, arms, seeds) also
defines `run(config, session) -> dict`, which gets the replaced configuration and a `RecipeSession`. One that compares
over seeds has a third parameter, `seeds=N`: how many by default, and what `--seeds` sets.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from firesteel.bundled import recipes_directory
from firesteel.config import Config
from firesteel.errors import ConfigError, FiresteelError
from firesteel.plugins import nearest


@dataclass(frozen=True, slots=True)
class Recipe:
    """A loaded recipe."""

    name: str
    path: Path
    module: ModuleType

    def config(self) -> Config:
        """Its settings before any are replaced."""
        config: Config = self.module.config()
        return config


@dataclass(frozen=True, slots=True)
class RecipeSession:
    """What a recipe's own `run` works with."""

    resume: bool
    listen: Callable[[str, dict[str, Any]], None]
    jobs: int = 1
    """How many runs `try_each` has under way at a time."""

    def try_each(self, configs: Sequence[Config]) -> Iterator[dict[str, Any] | FiresteelError]:
        """Trains configurations that do not depend on each other; yields their summaries in the same order.

        The error of a run stands in the place of its summary and stops no other.

        Raises:
            FiresteelError: with `jobs` above 1, the process of a run was killed.
        """
        if self.jobs > 1 and len(configs) > 1:
            from firesteel.parallel_runs import train_apart

            yield from train_apart(configs, self.jobs, resume=self.resume, listen=self.listen)
            return
        for config in configs:
            self.listen("note", {"text": f"== {config.name}"})
            try:
                yield self.train(config)
            except FiresteelError as error:
                yield error

    def train(self, config: Config) -> dict[str, Any]:
        """Trains one configuration. With `resume`, a finished run is not done again and a cut-off one goes on.

        A run that ended for want of steps or tokens goes on where it now has more.

        Raises:
            ConfigError: with `resume`, a finished run of this name has other settings.
        """
        from firesteel.environments.tool_calls.template import with_call_format
        from firesteel.run import config_hash, is_run
        from firesteel.train import MAY_DIFFER, train

        config = with_call_format(config)
        directory = Path(config.runs_dir) / config.name
        exists = is_run(directory)
        if exists and self.resume and (directory / "summary.json").exists():
            summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
            budget = math.inf if config.token_budget is None else config.token_budget
            left = budget - summary.get("generated_tokens", 0)
            is_spent = left <= 0 or left < summary.get("next_probe_tokens", 0)
            if summary.get("steps") == config.steps or is_spent or summary.get("stopped"):
                both = (Config.load(directory / "config.yaml"), config)
                if len({config_hash(each.model_dump(mode="json"), ignore=MAY_DIFFER) for each in both}) > 1:
                    raise ConfigError(
                        f"run '{directory}' is finished and had other settings; give the new one another name, "
                        "or delete the run"
                    )
                self.listen("note", {"text": f"{directory} is finished"})
                return summary
        return train(config, resume=exists and self.resume, listen=self.listen)


def recipe_names() -> list[str]:
    """All recipes, sorted."""
    return sorted(path.stem for path in recipes_directory().glob("*.py") if not path.stem.startswith("_"))


def recipe_summaries() -> dict[str, str]:
    """The first line of the docstring of every recipe, by name; no recipe is executed for it."""
    files = {name: recipes_directory() / f"{name}.py" for name in recipe_names()}
    docstrings = {name: ast.get_docstring(ast.parse(path.read_bytes())) or "" for name, path in files.items()}
    return {name: docstring.partition("\n")[0] for name, docstring in docstrings.items()}


def load_recipe(name: str) -> Recipe:
    """A recipe by name ("quickstart", "recipes/quickstart"), or a Python file of your own.

    Raises:
        ConfigError: there is no such recipe, or the file defines no `config`.
    """
    own = Path(name)
    path = own if own.suffix == ".py" and own.exists() else recipes_directory() / f"{own.stem}.py"
    if not path.exists():
        names = recipe_names()
        raise ConfigError(
            f"there is no recipe '{name}'{nearest(own.stem, names)}; known: {', '.join(names)}, or give a file"
        )
    specification = importlib.util.spec_from_file_location(f"firesteel_recipe_{path.stem}", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise ConfigError(f"recipe '{path}' must define config() -> Config")
    return Recipe(path.stem, path, module)


def run_recipe(
    recipe: Recipe,
    overrides: Mapping[str, Any],
    *,
    resume: bool,
    listen: Callable[[str, dict[str, Any]], None],
    jobs: int = 1,
    seeds: int | None = None,
) -> dict[str, Any]:
    """Trains a recipe with some settings replaced, `jobs` runs at a time where it has several; returns its summary.

    `seeds` replaces the number of seeds that the recipe compares over.

    Raises:
        ConfigError: `seeds` is given, and the recipe compares over none.
    """
    options = {} if seeds is None else {"seeds": seeds}
    if options and not compares_over_seeds(recipe):
        raise ConfigError(f"recipe '{recipe.name}' takes no --seeds; seed=N sets its first or only seed")
    from firesteel.environments.tool_calls.template import with_call_format

    config = with_call_format(recipe.config().updated(overrides))
    session = RecipeSession(resume, listen, jobs)
    if hasattr(recipe.module, "run"):
        summary: dict[str, Any] = recipe.module.run(config, session, **options)
        return summary
    return session.train(config)


def compares_over_seeds(recipe: Recipe) -> bool:
    """Whether the recipe's own `run` takes `seeds`."""
    run = getattr(recipe.module, "run", None)
    return run is not None and "seeds" in inspect.signature(run).parameters
