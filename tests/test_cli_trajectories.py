"""`firesteel trajectories` and `firesteel judge compare`: rows, prices, agreement, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import judge_server
from typer.testing import CliRunner

from firesteel.cli import app
from firesteel.errors import ConfigError
from firesteel.trajectories import read_trajectories

QUESTIONS = ["categories=[calendar]", "tools=[dates]", "--count", "3"]


def call(*arguments: str) -> dict[str, Any]:
    """The JSON object that a command prints last."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    if result.exception is not None:
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_rows_are_written_and_two_judges_compared(tmp_path: Path) -> None:
    rows = str(tmp_path / "rows")
    found = call("trajectories", rows, *QUESTIONS, "--steps", "2", "--connections", "1")
    assert (found["trajectories"], found["rows"], found["failed"]) == (3, 6, 0)
    assert len(list(read_trajectories(found["written"]))) == 3
    assert call("trajectories", rows, *QUESTIONS, "--steps", "2", "--connections", "1")["skipped"] == 3
    same = call("judge", "compare", rows, "rules", *QUESTIONS)
    assert (same["n"], same["same_choice"], same["process_kappa"] in (None, 1.0)) == (6, 1.0, True)
    with judge_server() as url:
        server = ["--base-url", url, "--model", "judge"]
        assert call("judge", "compare", rows, "llm", *QUESTIONS, *server)["score_difference"] > 0
        judged = call("trajectories", str(tmp_path / "llm"), *QUESTIONS, "--judge", "llm", "--steps", "2", *server)
    assert judged["ledgers"]["judge"]["calls_sent"] > 0


def test_a_dry_run_prices_and_writes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "rows"
    found = call("trajectories", str(place), *QUESTIONS, "--judge", "llm", "--prompt-price", "2", "--dry-run")
    assert found["judge_calls"] == 30 and found["judge_cost"] > 0 and not place.exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --model"):
        call("trajectories", str(tmp_path), "--judge", "llm", "--base-url", "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="'policy' writes and judges with a model in this process: give --model"):
        call("trajectories", str(tmp_path), "--writer", "policy")
