"""What long work says on a pipe, where no bars can be drawn."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from firesteel import progress as module
from firesteel.progress import Progress

RESULT: dict[str, Any] = {"split": "l0", "success": 0.5, "low": 0.25, "high": 0.75, "score": 0.6, "n": 8}


def said(*events: tuple[str, dict[str, Any]]) -> list[str]:
    console = Console(file=io.StringIO(), width=40)
    with Progress(console) as progress:
        for event, facts in events:
            progress(event, facts)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def step(number: int, **metrics: float) -> tuple[str, dict[str, Any]]:
    return "step", {"step": number, "steps": 3, "metrics": metrics}


def test_the_last_step_always_has_its_line_and_others_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_EVERY_S", 1e9)
    values = {"rollout/success": 0.25, "rollout/leaves": 32.0, "explore/ratio": 0.125, "losses/policy": -1.0}
    lines = said(step(1, **values), step(2, **values), step(3, **values))
    assert lines[-1] == "step 3/3  success 0.25  leaves 32  ratio 0.125"
    assert "step 2/3" not in "".join(lines)
    monkeypatch.setattr(module, "LINE_EVERY_S", -1.0)
    assert [line[:8] for line in said(step(1), step(2), step(3))] == ["step 1/3", "step 2/3", "step 3/3"]


def test_supervised_steps_show_the_loss_and_no_rollout() -> None:
    values = {"losses/sft": 0.5, "losses/token_accuracy": 0.75, "rollout/success": 1.0}
    assert said(step(3, **values)) == ["step 3/3  sft 0.5  token_accuracy 0.75"]


def test_offline_steps_show_how_far_the_policy_moved_and_what_the_critic_explains() -> None:
    values = {"losses/policy": -0.5, "losses/squared_kl": 0.01, "losses/kl": 0.1, "rollout/success": 1.0}
    critic = {"critic/explained_variance": 0.25}
    assert said(step(3, **values, **critic)) == ["step 3/3  policy -0.5  kl 0.1  explained_variance 0.25"]
    assert said(step(3, **values)) == ["step 3/3  policy -0.5  kl 0.1"]


def test_evaluations_are_whole_lines_however_narrow_the_pipe() -> None:
    lines = said(("before", RESULT), ("evaluation", {"step": 4, **RESULT}), ("note", {"text": "arm [explore]"}))
    assert lines == [
        "before training, l0: success 50.0% (25.0% - 75.0%), score 0.60, n = 8",
        "step 4, l0: success 50.0% (25.0% - 75.0%), score 0.60, n = 8",
        "arm [explore]",
    ]


def test_tables_on_a_pipe_lose_no_name() -> None:
    console = Console(file=io.StringIO(), width=40)
    table = Table("kind", "95% interval", *(f"share {n}" for n in range(5)), box=None)
    table.add_row("computer science", "16.3% - 61.2%", *("100.0%",) * 5)
    Progress(console).print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2 and "computer science" in lines[1] and "share 4" in lines[0]


def test_bars_that_nobody_sees_take_all_events_and_say_nothing() -> None:
    playing = {"split": "l0", "done": 3, "of": 8}
    assert said(("rollout", {"active": 3, "finished": 1}), ("playing", playing), ("skipped", {}), ("done", {})) == []
