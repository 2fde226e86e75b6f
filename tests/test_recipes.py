"""What `--continue` makes of a recipe's runs."""

from __future__ import annotations

from pathlib import Path

from small_runs import small_config

from firesteel.recipes import RecipeSession


def test_a_run_that_ended_for_want_of_tokens_goes_on_where_it_has_more(tiny_model: Path, tmp_path: Path) -> None:
    session = RecipeSession(True, lambda event, facts: None)
    config = small_config(tiny_model, tmp_path, {"token_budget": 1})
    first = session.train(config)
    assert first["steps"] == 1
    assert session.train(config) == first
    more = session.train(config.updated({"token_budget": 1_000_000}))
    assert more["steps"] == config.steps == 3 and more["generated_tokens"] > first["generated_tokens"]
    assert session.train(config.updated({"token_budget": 2_000_000})) == more  # its steps are done
