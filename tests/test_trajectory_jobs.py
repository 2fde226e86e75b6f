"""Jobs by name: generation, dry run, comparison of judges, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import judge_server

from firesteel.errors import ConfigError, StoreError
from firesteel.trajectories import TrajectorySettings, read_trajectories
from firesteel.trajectory_jobs import TrajectoryJob, compare_job, dry_run, run_job

JOB = TrajectoryJob(
    environment_options={"tools": ["dates", "search", "dictionary"], "categories": ["calendar", "history"]},
    count=8,
    settings=TrajectorySettings(steps=2, connections=2),
)


def test_a_job_runs_and_goes_on(tmp_path: Path) -> None:
    assert run_job(replace(JOB, count=4), tmp_path).trajectories == 4
    summary = run_job(JOB, tmp_path)
    assert (summary.skipped, summary.trajectories, summary.rows) == (4, 4, 8)
    rows = [row for rows in read_trajectories(tmp_path / "rows.jsonl") for row in rows]
    assert {row["category"] for row in rows} == {"calendar", "history"} and {row["split"] for row in rows} == {"train"}


def test_options_of_the_writer_reach_it_and_are_stored(tmp_path: Path) -> None:
    """Where no tool names an option, only a writer that guesses answers."""
    job = replace(JOB, environment_options={"tools": ["dates"], "categories": ["history"]})
    assert run_job(job, tmp_path / "plain").correct == 0
    run_job(replace(job, writer_options={"guess": True}), tmp_path / "guess")
    answers = [rows[0]["answer_letter"] for rows in read_trajectories(tmp_path / "guess" / "rows.jsonl")]
    assert None not in answers and len(set(answers)) > 1
    stored = json.loads((tmp_path / "guess" / "settings.json").read_text())["description"]["writer_options"]
    assert stored == {"guess": True}
    with pytest.raises(ConfigError, match="begun with other settings: description"):
        run_job(job, tmp_path / "guess")


def test_the_judge_with_the_key_gets_it_and_says_so(tmp_path: Path) -> None:
    run_job(replace(JOB, judge="rules_with_key"), tmp_path)
    assert all(rows[0]["judge_sees_key"] for rows in read_trajectories(tmp_path / "rows.jsonl"))


def test_a_dry_run_counts_and_sends_nothing() -> None:
    job = replace(JOB, judge="llm", server={"base_url": "http://127.0.0.1:9/v1", "model": "none"})
    assert dry_run(job, prompt_price=1.0)["judge_calls"] == 32


def test_judges_are_compared_on_stored_steps(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no trajectory; generate some first"):
        compare_job(JOB, tmp_path, "rules")
    run_job(JOB, tmp_path)
    same = compare_job(JOB, tmp_path, "rules")
    assert (same.n, same.same_choice, same.score_difference, same.process_agreement) == (16, 1.0, 0.0, 1.0)
    with judge_server() as url:
        other = compare_job(replace(JOB, server={"base_url": url, "model": "judge"}), tmp_path, "llm", steps=5)
    assert other.n == 5 and other.score_difference > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": "household"}, "environment 'household' asks no multiple-choice questions"),
        ({"judge": "llm"}, "judge 'llm' needs client"),
        ({"writer": "llm"}, "writer 'llm' needs a server"),
        ({"writer": "templat"}, "unknown writer 'templat' \\(did you mean 'template'"),
        ({"writer_options": {"slip": False}}, "writer 'template' has no option 'slip'; its options: slips, guess"),
        ({"writer": "llm", "writer_options": {"client": 1}}, "writer 'llm' has no option 'client'; its options: temp"),
        ({"selector": "worst"}, "unknown selector 'worst'"),
        ({"count": 0}, "has no question with these options"),
    ],
)
def test_bad_jobs_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_job(replace(JOB, **changes), tmp_path)
