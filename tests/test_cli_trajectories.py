"""`firesteel trajectories` and `firesteel judge compare`: rows, prices, agreement, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chat_server import answer, running_server
from judge_server import judge_server
from typer.testing import CliRunner

from firesteel import trajectory_jobs
from firesteel.cli import app
from firesteel.errors import ConfigError, FiresteelError
from firesteel.openai_client import ChatClient
from firesteel.trajectories import Summary, read_trajectories
from firesteel.trajectory_jobs import TrajectoryJob

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


def test_what_a_judge_says_wrongly_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose answers are no scores: an error if no row came of it, or else a line."""
    monkeypatch.setattr(trajectory_jobs, "ChatClient", partial(ChatClient, backoff_s=0.001))
    with running_server() as chat:
        chat.script = [answer('{"scores": {"dates": "high", "cot": 3}}')]
        server = ["--judge", "llm", "--base-url", chat.url, "--model", "m", "--steps", "1"]
        with pytest.raises(FiresteelError, match="every question failed, 3 in all; the last: AnswerInvalid: .*'high'"):
            call("trajectories", str(tmp_path / "none"), *QUESTIONS, *server)
        right = [answer('{"scores": {"dates": 7, "cot": 3}}'), answer('{"process_ok": true}')]
        chat.script = [*right, answer("seven")]
        found = call("trajectories", str(tmp_path / "one"), *QUESTIONS, *server, "--connections", "1")
    assert (found["trajectories"], found["failed"]) == (1, 2)
    assert "no JSON object" in found["text"] and found["text"].endswith("the same command tries them again")


def test_a_dry_run_prices_and_writes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "rows"
    found = call("trajectories", str(place), *QUESTIONS, "--judge", "llm", "--prompt-price", "2", "--dry-run")
    assert found["judge_calls"] == 30 and found["judge_cost"] > 0 and not place.exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --model"):
        call("trajectories", str(tmp_path), "--judge", "llm", "--base-url", "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="'policy' writes and judges with a model in this process: give --policy"):
        call("trajectories", str(tmp_path), "--writer", "policy")
    with pytest.raises(ConfigError, match="--writer-base-url http://127.0.0.1:9/v1 needs --writer-model"):
        call("trajectories", str(tmp_path), "--writer", "llm", "--writer-base-url", "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="--writer-model m is a model on a server: give --writer-base-url, or --pol"):
        call("trajectories", str(tmp_path), "--writer", "policy", "--writer-model", "m")
    with pytest.raises(ConfigError, match="writer 'template' has no option 'slip'; its options: slips, guess"):
        call("trajectories", str(tmp_path), *QUESTIONS, "--writer-option", "slip=false")
    with pytest.raises(ConfigError, match="guess must be true or false, got 'perhaps'"):
        call("trajectories", str(tmp_path), *QUESTIONS, "--writer-option", "guess=perhaps")


def queries_of(folder: Path) -> list[str]:
    found = [row for rows in read_trajectories(folder / "rows.jsonl") for row in rows]
    return [row["candidate_actions"]["dates"] for row in found if row["step_idx"] == 0]


def test_options_of_the_writer_decide_the_rows_and_belong_to_the_directory(tmp_path: Path) -> None:
    arguments = ["categories=[calendar]", "tools=[dates]", "--count", "40", "--steps", "1"]
    call("trajectories", str(tmp_path / "slips"), *arguments)
    call("trajectories", str(tmp_path / "none"), *arguments, "--writer-option", "slips=false")
    changed = [a != b for a, b in zip(queries_of(tmp_path / "slips"), queries_of(tmp_path / "none"), strict=True)]
    assert 0 < sum(changed) < 20  # `dates` slips in 15%
    with pytest.raises(ConfigError, match="begun with other settings: description"):
        call("trajectories", str(tmp_path / "none"), *arguments)


def test_writer_and_judge_may_have_servers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TrajectoryJob] = []

    def note(job: TrajectoryJob, *_: object, **__: object) -> Summary:
        made.append(job)
        return Summary()

    monkeypatch.setattr("firesteel.trajectory_jobs.run_job", note)
    call(
        "trajectories", str(tmp_path), "--writer", "llm", "--judge", "llm", "--base-url", "http://a/v1", "--model", "j",
        "--writer-base-url", "http://b/v1", "--writer-model", "w", "--requests-per-minute", "30",
    )  # fmt: skip
    call("trajectories", str(tmp_path), "--judge", "llm", "--base-url", "http://a/v1", "--model", "j")
    first, second = made
    assert first.server == {"base_url": "http://a/v1", "model": "j", "requests_per_minute": 30}
    assert first.writer_server == {"base_url": "http://b/v1", "model": "w", "requests_per_minute": 30}
    assert second.writer_server == {} and second.policy == {}
