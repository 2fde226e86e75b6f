"""Rollouts in environments that call `sys.exit`, return the wrong things, or cannot be made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_guard import Mute
from toys import Ledger, Toy, explore, grower, script, think
from typer.testing import CliRunner

from firesteel.annotate import collect_expert_episodes
from firesteel.cli import app
from firesteel.config import Config
from firesteel.environments.adapters import adapt
from firesteel.environments.base import Environment
from firesteel.errors import ConfigError, EnvironmentFailed
from firesteel.policy import load_tasks
from firesteel.types import ExpertStep, Observation, StepResult, Task

TASK = Task("t")
EXPERT = ExpertStep("left", True, "look there")
SMALL = ("rollout.max_turns=2", "rollout.max_response_tokens=8", "rollout.num_leaves=2", "rollout.num_roots=2")


def leave(*arguments: Any, **options: Any) -> Any:
    sys.exit(0)


def failures(**methods: Callable[..., Any]) -> list[str | None]:
    """What became of the leaves of a tree, in a `Toy` with some methods replaced."""
    broken = type("Broken", (Toy,), methods)
    (tree,) = grower(script({(0, 0, 0): explore("left")}, [TASK]), lambda: broken(Ledger())).grow([TASK], seed=0)
    return [leaf.failure for leaf in tree.leaves]


@pytest.mark.parametrize(
    ("method", "returns", "reason"),
    [
        ("reset", leave, "reset of task 't': SystemExit: 0"),
        ("step", leave, "step 'go' of task 't' at turn 0: SystemExit: 0"),
        ("fork", leave, "fork of task 't' at turn 1: SystemExit: 0"),
        ("close", leave, "close after leaf 1: SystemExit: 0"),
        (
            "reset",
            lambda self, task, seed: "at 0",
            "result of reset of task 't': wanted an Observation, got str 'at 0'",
        ),
        (
            "step",
            lambda self, action: ("at 1", 0.0),
            "step 'go' of task 't' at turn 0: wanted a StepResult, got tuple (",
        ),
        ("step", lambda self, action: StepResult("at 1"), "result of step 'go' of task 't' at turn 0: wanted an Obs"),
    ],
)
def test_it_is_the_failure_of_the_episode(method: str, returns: Callable[..., Any], reason: str) -> None:
    assert any(reason in failure for failure in failures(**{method: returns}) if failure)


class NoTruth:
    """Is neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("no truth")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward": None}, "reward of {}: wanted a finite number, got NoneType None"),
        ({"reward": "x"}, "reward of {}: wanted a finite number, got str 'x'"),
        ({"reward": 10**400}, "reward of {}: wanted a finite number, got int 1000"),
        ({"reward": float("nan")}, "reward of {}: wanted a finite number, got float nan"),
        ({"info": None}, "info of {}: wanted a mapping, got NoneType None"),
        ({"info": {"score": None}}, "info['score'] of {}: wanted a number from 0 to 1, got NoneType None"),
        ({"info": {"score": "high"}}, "info['score'] of {}: wanted a number from 0 to 1, got str 'high'"),
        ({"info": {"score": float("nan")}}, "info['score'] of {}: wanted a number from 0 to 1, got float nan"),
        ({"info": {"success": NoTruth()}}, "info['success'] of {}: wanted a bool, got NoTruth <"),
        ({"terminated": "no"}, "terminated of {}: wanted a bool, got str 'no'"),
        ({"observation": Observation(None)}, "text of {}: wanted a str, got NoneType None"),  # type: ignore[arg-type]
        ({"observation": Observation(b"at")}, "text of {}: wanted a str, got bytes b'at'"),  # type: ignore[arg-type]
        ({"observation": Observation("", (1,))}, "admissible of {}: wanted a tuple"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_field_of_a_result_is_the_failure_of_the_episode(changes: dict[str, Any], reason: str) -> None:
    result = StepResult(**{"observation": Observation("at 1"), **changes})
    whole = reason.format("step 'go' of task 't' at turn 0")
    assert any(failure.startswith(whole) for failure in failures(step=lambda *_: result) if failure)


def test_a_wrong_start_is_the_failure_of_the_episode() -> None:
    def reset(self: Toy, task: Task, seed: int) -> Observation:
        self.goal = None  # type: ignore[assignment]
        return Observation("here")

    assert failures(reset=reset)[0] == "goal after reset of task 't': wanted a str, got NoneType None"
    nothing = Observation(None)  # type: ignore[arg-type]
    assert failures(reset=lambda *_, **__: nothing)[0] == "text of reset of task 't': wanted a str, got NoneType None"


def test_numbers_of_numpy_are_numbers() -> None:
    info = {"success": np.bool_(True), "score": np.float32(0.5)}
    result = StepResult(Observation("at 1"), np.float32(1.0), np.bool_(True), info=info)  # type: ignore[arg-type]
    assert set(failures(step=lambda *_: result)) == {None}


def test_text_that_utf8_cannot_hold_is_mended() -> None:
    def reset(self: Toy, task: Task, seed: int) -> Observation:
        self.goal = "go\udcff"
        return Observation("at\ud800", ("go\ud800",))

    result = StepResult(Observation("a\ud800b"))
    broken = type("Broken", (Toy,), {"reset": reset, "step": lambda *_: result})
    (tree,) = grower(script({}, [TASK]), lambda: broken(Ledger())).grow([TASK], seed=0)
    assert (tree.goal, tree.observation) == ("go\ufffd", "at\ufffd")
    assert {node.step.observation for node in tree.nodes if node.step} == {"a\ufffdb"}


def test_a_call_of_a_tool_with_a_lone_surrogate_is_answered() -> None:
    class Say:
        """Says."""

        def say(self, word: str) -> str:
            """Says a word."""
            return word

    for action in ('{"name": "\\ud800"}', '{"name": "say", "arguments": {"word": "\\ud83d"}}'):
        (tree,) = grower(script({}, [TASK], think(action)), adapt(Say)).grow([TASK], seed=0)
        assert "\ufffd" in next(node.step.observation for node in tree.nodes if node.step)


def mute(*arguments: Any, **options: Any) -> Any:
    raise Mute


def stop(*arguments: Any, **options: Any) -> Any:
    raise StopIteration


@pytest.mark.parametrize("method", ["reset", "step", "fork", "close"])
@pytest.mark.parametrize(("raises", "name"), [(mute, "Mute"), (stop, "StopIteration")])
def test_any_error_of_any_method_is_the_failure_of_the_episode(
    method: str, raises: Callable[..., Any], name: str
) -> None:
    assert any(f": {name}" in failure for failure in failures(**{method: raises}) if failure)


def test_an_interrupt_stops_the_rollout() -> None:
    def interrupted(self: Toy, action: str) -> StepResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failures(step=interrupted)


class Leaving(Toy):
    """Calls `sys.exit` where its tasks are asked for."""

    tasks = classmethod(leave)  # type: ignore[assignment]


def test_tasks_that_leave_do_not_end_a_training_as_if_it_were_done() -> None:
    config = Config.build({"environment": {"name": f"{__name__}:Leaving"}})
    with pytest.raises(EnvironmentFailed, match=r"tasks\('train'\) raised SystemExit: 0 \(.*, in leave\)"):
        load_tasks(config, "train", None)


def test_collecting_records_what_an_environment_raises() -> None:
    broken = type("Broken", (Toy,), {"step": lambda self, action: leave(), "expert": lambda self: EXPERT})
    episodes = collect_expert_episodes(lambda: broken(Ledger()), [TASK], {})
    assert [(one.task_id, one.reason) for one in episodes.rejected] == [
        ("t", "the environment failed: task 't': SystemExit: 0")
    ]


def fail(self: Toy, ledger: Ledger) -> None:
    raise OSError("no such game")


@pytest.mark.parametrize(("init", "reason"), [(leave, "SystemExit: 0"), (fail, "OSError: no such game")])
def test_a_constructor_that_raises_is_a_mistake_in_the_setup(init: Callable[..., Any], reason: str) -> None:
    message = rf"^the environment's constructor raised {reason} \({__file__}, line \d+, in \w+\); mend it there$"
    with pytest.raises(ConfigError, match=message):
        failures(__init__=init)


class Long(Environment):
    """Fails for a reason of many words in some of its episodes."""

    made = 0
    share = 1

    def __init__(self) -> None:
        Long.made += 1
        self.is_bad = Long.made % Long.share == 0

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> list[Task]:
        return leave() if split == "test" else [Task("t", split=split)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        if self.is_bad:
            raise ValueError("a long story, " * 30 + "to the end")
        self.goal = "go"
        return Observation("here")

    def step(self, action: str) -> StepResult:
        return StepResult(Observation("there"))


@pytest.mark.parametrize(("share", "count"), [(1, 2), (2, 1)])
def test_rollout_tells_the_whole_reason_once_and_fails_where_all_episodes_did(
    share: int, count: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Long, "share", share)
    monkeypatch.setattr(Long, "made", 0)
    arguments = ["rollout", str(tiny_model), f"environment.name={__name__}:Long", *SMALL, "context.prompts=compact"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("failed, ")]
    assert line.startswith(f"failed, {count} of 2 episodes: reset of task 't': ValueError: a long story, a long")
    assert line.endswith("to the end") and '"rollout/failed_leaves"' in result.stdout
    if share == 1:
        assert isinstance(result.exception, EnvironmentFailed) and "every episode failed" in str(result.exception)
    else:
        assert result.exit_code == 0
    exits = CliRunner().invoke(app, [*arguments, "--split", "test"])
    assert "tasks('test') raised SystemExit: 0" in str(exits.exception)
