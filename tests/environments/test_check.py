"""`check_environment` passes what keeps the contract and names what breaks it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
from collections.abc import Sequence

import pytest

from firesteel.environments import ENVIRONMENTS, environment_class
from firesteel.environments.base import Environment
from firesteel.environments.check import check_environment
from firesteel.environments.scienceworld.java import find_java, find_simulator
from firesteel.errors import CannotFork, ConfigError, EnvironmentFailed, MissingDependency, TaskError
from firesteel.types import ExpertStep, Observation, StepResult, Task


class Counter(Environment):
    """Counts up and down from a start that the task and the seed decide; ends at 12 or -12."""

    fork_rung = "native"

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        return [Task(id=f"count-{number}", split=split) for number in range(5 if count is None else count)]

    def __init__(self) -> None:
        self.state: list[int] = [0]

    def reset(self, task: Task, *, seed: int) -> Observation:
        self.goal = "count to twelve"
        self.state = [len(task.id) + seed % 3 - 9]
        return self.show()

    def step(self, action: str) -> StepResult:
        self.state[0] += {"up": 1, "down": -1}.get(action, 0)
        is_over = abs(self.state[0]) >= 12
        return StepResult(self.show(), float(is_over), is_over, info={"score": min(1.0, abs(self.state[0]) / 12)})

    def show(self) -> Observation:
        return Observation(f"at {self.state[0]}", ("down", "up"))

    def fork(self) -> Environment:
        twin = type(self)()
        twin.goal, twin.state = self.goal, list(self.state)
        return twin


class Changed(Counter):
    """Overrides single results of `Counter`."""

    def change(self, result: StepResult, **changes: object) -> StepResult:
        fields = {name: getattr(result, name) for name in StepResult.__slots__}
        return StepResult(**{**fields, **changes})


def broken(name: str, **methods: object) -> type[Counter]:
    return type(name, (Changed,), methods)


def with_step(name: str, **changes: object) -> type[Counter]:
    return broken(name, step=lambda self, action: self.change(Counter.step(self, action), **changes))


# Environments that keep the contract


def test_a_correct_environment_passes_and_is_measured():
    report = check_environment(Counter, episodes=4, steps=6, seed=2)
    assert report.environment == "Counter" and report.fork_rung == "native"
    assert report.checks == ("contract", "reset", "step", "fork")
    # Four episodes, forked in three orders each.
    assert (report.num_episodes, report.num_forks) == (4, 12)
    assert report.fork_ms >= 0 and report.reset_ms >= 0 and report.steps_per_second > 0
    assert 0 <= report.mean_fork_depth <= 5
    # Each episode of 6 steps: two resets and 6 steps again; then three forks, parent and child to the end each.
    total_depth = round(12 * report.mean_fork_depth)
    assert report.num_compared == 4 * (2 + 6) + 2 * (12 * 6 - total_depth)


def test_the_report_is_json_and_readable():
    report = check_environment(Counter)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert str(report).startswith("Counter: passed (contract, reset, step, fork)\n  episodes 3, steps ")
    assert f"{report.fork_ms:.2f} ms by native" in str(report)


def test_the_seed_decides_what_is_played():
    depths = [check_environment(Counter, seed=seed).mean_fork_depth for seed in (0, 0, 1, 2)]
    assert depths[0] == depths[1] and len(set(depths)) > 1


def test_an_environment_that_does_not_fork_passes_without_fork():
    plain = broken("Plain", fork_rung="none", fork=Environment.fork)
    report = check_environment(plain)
    assert report.checks == ("contract", "reset", "step")
    assert (report.fork_ms, report.num_forks, report.mean_fork_depth) == (None, 0, None)
    assert "fork     does not fork" in str(report)


def test_a_function_may_make_the_environments_and_tasks_may_be_given():
    played = []

    class Named(Counter):
        def reset(self, task, *, seed):
            played.append(task.id)
            return super().reset(task, seed=seed)

    check_environment(lambda: Named(), [Task(id="mine"), Task(id="yours")], episodes=3)
    assert [key for key, _ in itertools.groupby(played)] == ["mine", "yours", "mine"]


def without_list(self: Counter) -> Observation:
    return Observation(f"at {self.state[0]}")


def test_actions_are_drawn_from_the_expert_or_a_list_where_none_are_admissible():
    played = []

    def step(self, action):
        played.append(action)
        return Counter.step(self, action)

    silent = {"show": without_list, "step": step}
    expert = {"expert": lambda self: ExpertStep("up", False, "on track")}
    check_environment(broken("Guided", **silent, **expert))
    assert set(played) == {"up"}
    played.clear()
    check_environment(broken("Blind", **silent), actions=["down", "hop"])
    assert set(played) == {"down", "hop"}
    message = "Blind: .* no expert; give actions to draw from, each by a --action 'TEXT', in Python by actions="
    with pytest.raises(ConfigError, match=message):
        check_environment(broken("Blind", **silent))


@pytest.mark.parametrize("counts", [{"episodes": 0}, {"steps": 0}])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(ConfigError, match="episodes and steps must be at least 1"):
        check_environment(Counter, **counts)


def test_no_tasks_is_an_error():
    with pytest.raises(TaskError, match="Counter: there is no task to check it with"):
        check_environment(Counter, [])


# Environments that lie about determinism

CLOCK = itertools.count()


def drifting_reset(self, task, *, seed):
    Counter.reset(self, task, seed=seed)
    self.state[0] += next(CLOCK) % 7
    return self.show()


def drifting_step(self, action):
    self.state[0] += next(CLOCK) % 5
    return Counter.step(self, action)


def moody_step(self, action):
    return self.change(Counter.step(self, action), reward=float(next(CLOCK)))


def leaking_reset(self, task, *, seed):
    old = self.state[0]
    Counter.reset(self, task, seed=seed)
    self.state[0] += old
    return self.show()


def moving_expert(self):
    self.state[0] += 1


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"reset": drifting_reset},
            "check 'reset' failed at step 0 of task 'count-0' after another episode in the same env",
        ),
        ({"reset": leaking_reset}, "check 'reset' failed at step 0 of task 'count-0' after another episode in"),
        ({"step": drifting_step}, "check 'step' failed at step 1 \\('(up|down)'\\) of task .* in a fresh environment"),
        ({"step": moody_step}, "check 'step' .*: wanted as before reward [0-9.]+, got reward [0-9.]+; look for someth"),
        ({"expert": moving_expert}, "check 'step' failed at step 1 "),
    ],
)
def test_a_lie_about_determinism_is_found(methods, message):
    with pytest.raises(EnvironmentFailed, match=f"^Liar: {message}"):
        check_environment(broken("Liar", **methods))


def test_texts_that_differ_are_shown_with_a_hint():
    def step(self, action):
        result = Counter.step(self, action)
        text = f"{'before ' * 40}drawn {next(CLOCK)}{' after' * 40}"
        return self.change(result, observation=Observation(text, ("up",)))

    with pytest.raises(EnvironmentFailed) as caught:
        check_environment(broken("Liar", step=step))
    piece = r"\.\.\.[a-z ]*drawn \d+[a-z ]*\.\.\."
    advice = "look for something random: random, time, id() or the order of a set; draw from a generator seeded by"
    assert re.search(
        f"wanted as before observation {piece}, got observation {piece}; {re.escape(advice)}", str(caught.value)
    )
    assert len(str(caught.value)) < 600
    with pytest.raises(
        EnvironmentFailed, match=r"observation 'at -?\d+', .*got observation 'at -?\d+', .*; the fork shares"
    ):
        check_environment(broken("Fork", fork=shared), steps=6)


def surrogate_goal(self, task, *, seed):
    observation = Counter.reset(self, task, seed=seed)
    self.goal = "\udcff"
    return observation


@pytest.mark.parametrize(
    ("methods", "where"),
    [
        ({"show": lambda self: Observation("at \ud800")}, "text of reset"),
        ({"show": lambda self: Observation("at", ("up\ud800",))}, "text of reset"),
        ({"step": lambda self, action: StepResult(Observation("\ud800"))}, r"text of step\('\w+'\)"),
        ({"reset": surrogate_goal}, "goal after reset"),
    ],
)
def test_text_that_utf8_cannot_hold_is_refused(methods, where):
    message = f"failed at {where}: wanted text without lone surrogates, which UTF-8 cannot hold, got str '"
    with pytest.raises(EnvironmentFailed, match=message):
        check_environment(broken("Odd", **methods))


def test_a_goal_that_changes_is_found():
    def reset(self, task, *, seed):
        observation = Counter.reset(self, task, seed=seed)
        self.goal = f"goal {next(CLOCK)}"
        return observation

    with pytest.raises(
        EnvironmentFailed, match="check 'reset' failed at goal: wanted 'goal \\d+', got str 'goal \\d+'"
    ):
        check_environment(broken("Fickle", reset=reset))


# Environments whose forks are wrong


def shared(self):
    twin = type(self)()
    twin.goal, twin.state = self.goal, self.state
    return twin


def ahead(self):
    twin = shared(self)
    twin.state = [self.state[0] + 1]
    return twin


def forgetful(self):
    twin = Counter.fork(self)
    twin.goal = ""
    return twin


def refusing(self):
    raise CannotFork("not today")


def tied(self):
    """A fork that works only while its parent is open."""
    twin = Counter.fork(self)
    twin.parent = self
    return twin


def tied_step(self, action):
    parent = getattr(self, "parent", self)
    if getattr(parent, "is_closed", False):
        raise EnvironmentFailed("my parent is closed")
    return Counter.step(self, action)


def tied_close(self):
    self.is_closed = True


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"fork": shared},
            "Fork: check 'fork' failed at step \\d+ .* in the parent, forked at \\d+, fork first: wanted",
        ),
        ({"fork": ahead}, "Fork: check 'fork' failed at step \\d+ .* in the fork, forked at \\d+, fork first"),
        ({"fork": forgetful}, "Fork: check 'fork' failed at goal at step \\d+: wanted 'count to twelve', got str ''"),
        ({"fork": lambda self: self}, "Fork: check 'fork' failed at step \\d+: wanted another Environment, got Fork"),
        ({"fork": lambda self: None}, "Fork: check 'fork' failed .*: wanted another Environment, got NoneType None"),
        (
            {"fork": refusing},
            "Fork: check 'fork' failed .*: wanted a fork, since fork_rung is 'native', got CannotFork",
        ),
        ({"fork_rung": "none"}, "Fork: check 'fork' failed at step 0: wanted CannotFork, since fork_rung is 'none'"),
        ({"fork": tied, "step": tied_step, "close": tied_close}, "my parent is closed"),
    ],
)
def test_a_wrong_fork_is_found(methods, message):
    with pytest.raises(EnvironmentFailed, match=message):
        check_environment(broken("Fork", **methods), steps=6)


# Environments that return the wrong things


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (broken("Wrong", show=lambda self: "at 0"), "result of reset: wanted an Observation, got str 'at 0'"),
        (broken("Wrong", show=lambda self: Observation(b"at")), "text of reset: wanted a str, got bytes b'at'"),
        (
            broken("Wrong", show=lambda self: Observation("", {"up"})),
            "admissible of reset: wanted a tuple of str or None",
        ),
        (broken("Wrong", show=lambda self: Observation("", (1,))), "admissible of reset: .* got tuple \\(1,\\)"),
        (
            broken("Wrong", step=lambda self, action: ("at 1", 0.0, False)),
            "step\\('\\w+'\\): wanted a StepResult, got tu",
        ),
        (with_step("Wrong", observation="at 1"), "result of step\\('\\w+'\\): wanted an Observation, got str"),
        (with_step("Wrong", reward=float("nan")), "reward of step\\('\\w+'\\): wanted a finite number, got float nan"),
        (with_step("Wrong", reward=10**400), "reward of step\\('\\w+'\\): wanted a finite number, got int 1000"),
        (with_step("Wrong", reward=True), "reward of step\\('\\w+'\\): wanted a finite number, got bool True"),
        (with_step("Wrong", terminated=0), "terminated of step\\('\\w+'\\): wanted a bool, got int 0"),
        (with_step("Wrong", truncated=None), "truncated of step\\('\\w+'\\): wanted a bool, got NoneType None"),
        (with_step("Wrong", info=None), "info of step\\('\\w+'\\): wanted a mapping, got NoneType None"),
        (with_step("Wrong", info={"success": 1}), "info\\['success'\\] of step\\('\\w+'\\): wanted a bool, got int 1"),
        (with_step("Wrong", info={"score": 100}), "info\\['score'\\] of step\\('\\w+'\\): wanted a number from 0 to 1"),
        (broken("Wrong", expert=lambda self: "up"), "expert at step 0: wanted an ExpertStep or None, got str 'up'"),
        (
            broken("Wrong", expert=lambda self: ExpertStep("up", True, "")),
            "expert at step 0: wanted an action, a bool and a reason",
        ),
        (broken("Wrong", fork_rung="copy"), "fork_rung: wanted one of .*'none'\\), got str 'copy'"),
    ],
)
def test_a_wrong_type_is_found(wrong, message):
    with pytest.raises(EnvironmentFailed, match=f"^Wrong: check 'contract' failed at {message}"):
        check_environment(wrong)


def test_an_empty_goal_is_found():
    def reset(self, task, *, seed):
        observation = Counter.reset(self, task, seed=seed)
        self.goal = " "
        return observation

    with pytest.raises(EnvironmentFailed, match="failed at goal after reset: wanted a sentence, got str ' '"):
        check_environment(broken("Aimless", reset=reset))


def test_wrong_tasks_are_found():
    class Twice(Counter):
        @classmethod
        def tasks(cls, split, *, count=None, seed=0, **options):
            return [Task(id="one"), Task(id="one")]

    class Drawn(Counter):
        @classmethod
        def tasks(cls, split, *, count=None, seed=0, **options):
            return [Task(id=f"task-{next(CLOCK)}")]

    with pytest.raises(EnvironmentFailed, match="Twice: check 'contract' failed at tasks: wanted different ids"):
        check_environment(Twice)
    with pytest.raises(EnvironmentFailed, match="Drawn: check 'contract' failed at tasks: wanted the same again"):
        check_environment(Drawn)
    with pytest.raises(EnvironmentFailed, match="failed at tasks: wanted a Task, got str 'one'"):
        check_environment(Counter, ["one"])


def test_what_is_no_environment_is_found():
    with pytest.raises(EnvironmentFailed, match="failed at the factory: wanted an Environment, got dict \\{\\}"):
        check_environment(dict)


# The environments of this library


def what_scienceworld_lacks() -> str:
    try:
        find_java()
        find_simulator()
    except MissingDependency as error:
        return str(error)
    return ""


def lacks_bfcl() -> bool:
    return importlib.util.find_spec("bfcl_eval") is None


NEEDS = {
    "alfworld": [pytest.mark.skip(reason="its games are the user's or generated; tests/system/test_alfworld.py")],
    "bfcl": [pytest.mark.skipif(lacks_bfcl(), reason="bfcl-eval is not installed; see docs/environments.md")],
    "mmlu_pro": [pytest.mark.skip(reason="its questions come from the Hub or from a file of the user")],
    "tool_questions": [pytest.mark.skipif(not shutil.which("bwrap"), reason="its Python needs bubblewrap")],
    "scienceworld": [
        pytest.mark.system,
        pytest.mark.skipif(bool(what_scienceworld_lacks()), reason=what_scienceworld_lacks()),
    ],
}
SMALL = {
    "scienceworld": {"episodes": 1, "steps": 4},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS.get(name, [])) for name in sorted(ENVIRONMENTS)])
def test_every_environment_of_the_library_keeps_the_contract(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path))
    environment = environment_class(name)
    options = {"task_types": ["find-plant"]} if name == "scienceworld" else {}
    tasks = environment.tasks("train", count=3, **options)
    report = check_environment(environment, tasks, **SMALL.get(name, {}))
    assert report.fork_rung == environment.fork_rung
    assert ("fork" in report.checks) == (environment.fork_rung != "none")
