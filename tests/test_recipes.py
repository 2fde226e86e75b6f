"""What `--continue` makes of a recipe's runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import small_config

from firesteel.errors import ConfigError
from firesteel.recipes import RecipeSession, compares_over_seeds, load_recipe, run_recipe


def test_a_run_that_ended_for_want_of_tokens_goes_on_where_it_has_more(tiny_model: Path, tmp_path: Path) -> None:
    session = RecipeSession(True, lambda event, facts: None)
    config = small_config(tiny_model, tmp_path, {"token_budget": 1})
    first = session.train(config)
    assert first["steps"] == 1
    assert session.train(config) == first
    more = session.train(config.updated({"token_budget": 1_000_000}))
    assert more["steps"] == config.steps == 3 and more["generated_tokens"] > first["generated_tokens"]
    assert session.train(config.updated({"token_budget": 2_000_000})) == more  # its steps are done


COMPARING = """
from firesteel import Config

def config():
    return Config.build({"name": "own"})

def run(config, session, seeds=3):
    return {"seeds": list(range(config.seed, config.seed + seeds))}
"""


def test_the_number_of_seeds_is_an_option_of_recipes_that_compare(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(COMPARING)
    own, silent = load_recipe(str(path)), lambda event, facts: None
    assert run_recipe(own, {}, resume=False, listen=silent) == {"seeds": [0, 1, 2]}
    assert run_recipe(own, {"seed": 4}, resume=False, listen=silent, seeds=2) == {"seeds": [4, 5]}
    for name in ("toolexpander", "toolexpander_negative", "spark_vs_chain"):
        assert compares_over_seeds(load_recipe(name))
    for name in ("quickstart", "spark_webshop"):  # with and without a `run` of its own
        with pytest.raises(ConfigError, match=f"recipe '{name}' takes no --seeds; seed=N sets"):
            run_recipe(load_recipe(name), {"runs_dir": str(tmp_path)}, resume=False, listen=silent, seeds=5)
    assert list(tmp_path.iterdir()) == [path]
