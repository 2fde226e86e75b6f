"""A plain class whose public methods are tools, such as TRL takes for `environment_factory`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from firesteel.environments.adapters.rows import class_tasks
from firesteel.environments.adapters.tools import Tool, describe, find_tools, read_call
from firesteel.environments.base import Environment
from firesteel.errors import EnvironmentFailed, FiresteelError
from firesteel.guard import text_of, told
from firesteel.types import Observation, StepResult, Task

FINISH = "finish"
BEGIN = "The episode begins."
_PROMPTS = ("goal", "prompt", "question", "instruction")


class ToolClass(Environment):
    """Plays the tools of a class; an action is `{"name": "...", "arguments": {...}}`. Made by `adapt`.

    Options:
        tasks: a JSON-lines file of tasks, `{split}` in its path standing for the split; each row goes to `reset`.
        num_tasks: how many numbered tasks a split has where there is neither such a file nor `tasks` of the class.
        success_reward: an episode whose reward reaches this is a success.
        Every other option goes to the class's constructor.

    Members of the class that are known, all optional: `reset(...)` gets those entries of the task (and `seed`) that it
    names, all of them if it takes `**kwargs`, and may return the first observation; without it, every episode has a new
    object. `get_reward()` or the attribute `reward` is the reward so far, `done` says that the episode is over, and the
    tool "finish", which every class has, ends it. `tasks(split)` lists tasks or rows; `fork_rung` names a rung (with
    `snapshot` and `restore`); `close()` frees what is held.

    What a tool raises is told to the agent, as TRL does. Rewards are changes of the reward so far.
    """

    made_by: ClassVar[Callable[..., Any]]
    tools: ClassVar[dict[str, Tool]]

    def __init__(
        self, *, tasks: str | None = None, num_tasks: int = 100, success_reward: float = 1.0, **options: Any
    ) -> None:
        del tasks, num_tasks
        self._success_reward = success_reward
        self._constructor = options
        self._object: Any = None
        self._reward = 0.0
        self._is_over = True

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The class's own tasks, those of the option `tasks`, or numbered ones."""
        return class_tasks(cls.made_by, cls.__name__, split, count, seed, options)

    def reset(self, task: Task, *, seed: int) -> Observation:
        reset = getattr(type(self._object), "reset", None) if self._object is not None else None
        if reset is None:
            self._object = type(self).made_by(**self._constructor)
        shown = None
        if hasattr(self._object, "reset"):
            shown = self._object.reset(**accepted(self._object.reset, {"seed": seed, **task.data}))
        self.goal = f"{self._instruction(task)}\n{describe(_FINISH | self.tools)}"
        self._reward, self._is_over = self._reward_so_far(), False
        return Observation(BEGIN if shown is None else str(shown))

    def _instruction(self, task: Task) -> str:
        """What the task says, else the first line of the class's docstring."""
        for name in _PROMPTS:
            text = task.data.get(name)
            if isinstance(text, list) and text and isinstance(text[-1], Mapping):
                text = text[-1].get("content")
            if isinstance(text, str) and text.strip():
                return text.strip()
        documented = inspect.cleandoc(type(self).__doc__ or "").split("\n")[0]
        return documented or "Solve the task with the tools."

    def step(self, action: str) -> StepResult:
        if self._is_over:
            raise EnvironmentFailed(f"{type(self).__name__}: stepped before a reset or after the end; call reset first")
        name, arguments, problem = read_call(action, _FINISH | self.tools)
        if problem:
            text = problem
        elif name == FINISH and FINISH not in self.tools:
            text, self._is_over = "The episode is over.", True
        else:
            text, problem = self._use(name, arguments)
        before, self._reward = self._reward, self._reward_so_far()
        self._is_over = self._is_over or getattr(self._object, "done", False) is True
        score = min(max(self._reward / self._success_reward, 0.0), 1.0)
        info = {"success": self._reward >= self._success_reward, "score": score, "valid": not problem}
        return StepResult(Observation(text), self._reward - before, self._is_over, info=info)

    def _use(self, name: str, arguments: dict[str, Any]) -> tuple[str, str]:
        """What a tool answers, and what it raised ("" if nothing)."""
        try:
            result = getattr(self._object, name)(**arguments)
        except FiresteelError:
            raise  # a time limit that was exceeded, say
        except Exception as error:  # boundary: what a tool raises is how it tells the agent that a call was wrong
            problem = f"{name} failed: {text_of(error) or type(error).__name__}"
            return problem, problem
        if result is None:
            return f"{name}: done.", ""
        try:
            return (result if isinstance(result, str) else json.dumps(result, default=str)), ""
        except Exception as error:  # boundary: cycles and odd keys, and `str` of whatever the tool returned
            hint = "return text, or lists and dicts of plain values with text as keys"
            problem = f"{name}: its result cannot be written as JSON ({told(error)}); {hint}"
            return problem, problem

    def _reward_so_far(self) -> float:
        reward = (
            self._object.get_reward() if hasattr(self._object, "get_reward") else getattr(self._object, "reward", 0)
        )
        if not isinstance(reward, (int, float)):
            raise EnvironmentFailed(f"{type(self).__name__}: its reward is {reward!r:.100}; wanted a number")
        return float(reward)

    def snapshot(self) -> Any:
        """The object's snapshot, with what is known of the episode around it."""
        return self._object.snapshot(), self._reward, self._is_over

    def restore(self, state: Any) -> None:
        """Takes over a snapshot in a new object."""
        self._object = type(self).made_by(**self._constructor)
        inner, self._reward, self._is_over = state
        self._object.restore(inner)

    def close(self) -> None:
        held, self._object, self._is_over = self._object, None, True
        if hasattr(held, "close"):
            held.close()


class _Finish:
    """What every class can do besides."""

    def finish(self) -> None:
        """Ends the episode."""


_FINISH = find_tools(_Finish)


def accepted(function: Callable[..., Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the named arguments that a function takes; all of them if it takes `**kwargs`."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(wanted)
    return {name: value for name, value in wanted.items() if name in parameters}
