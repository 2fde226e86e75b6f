"""A Gymnasium environment with text observations and text actions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from firesteel.environments.adapters.rows import class_tasks
from firesteel.environments.base import Environment
from firesteel.errors import ConfigError, EnvironmentFailed
from firesteel.types import Observation, StepResult, Task

_ADMISSIBLE = ("admissible", "admissible_commands")
_SUCCESS = ("success", "is_success")


class GymnasiumText(Environment):
    """Plays a `gymnasium.Env` whose observation and action spaces are `gymnasium.spaces.Text`. Made by `adapt`.

    Options are those of `ToolClass` (`tasks`, `num_tasks`) and the constructor's; `goal` is the instruction where
    `info["goal"]` of a reset gives none. A task's data goes to `reset` as `options`. Known keys of `info`: `goal`,
    `admissible` or `admissible_commands`, `success` or `is_success`, `score`. Without the latter two, an episode that
    terminates with a reward above 0 is a success.
    """

    made_by: ClassVar[Callable[..., Any]]

    def __init__(self, *, tasks: str | None = None, num_tasks: int = 100, goal: str = "", **options: Any) -> None:
        del tasks, num_tasks
        self._env = type(self).made_by(**options)
        self._instruction = goal or inspect.cleandoc(type(self).__doc__ or "").split("\n")[0] or "Reach the goal."
        self._is_over = True
        for name in ("observation", "action"):
            space = getattr(self._env, f"{name}_space", None)
            if type(space).__name__ != "Text":
                raise ConfigError(
                    f"{type(self).__name__}: its {name} space is {space!r:.100}; wanted gymnasium.spaces.Text. Wrap it "
                    "(gymnasium.ObservationWrapper, ActionWrapper) into an environment that speaks text"
                )

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The class's own tasks, those of the option `tasks`, or numbered ones."""
        return class_tasks(cls.made_by, cls.__name__, split, count, seed, options)

    def reset(self, task: Task, *, seed: int) -> Observation:
        shown, info = self._env.reset(seed=seed, options=dict(task.data) or None)
        self.goal = str(info.get("goal") or task.data.get("goal") or self._instruction)
        self._is_over = False
        return self._seen(shown, info)

    def step(self, action: str) -> StepResult:
        if self._is_over:
            raise EnvironmentFailed(f"{type(self).__name__}: stepped before a reset or after the end; call reset first")
        space = self._env.action_space
        if not space.contains(action):
            text = f"That is no action here: wanted {space.min_length} to {space.max_length} known characters."
            return StepResult(Observation(text), info={"valid": False})
        shown, reward, terminated, truncated, info = self._env.step(action)
        self._is_over = bool(terminated or truncated)
        known: dict[str, Any] = {"success": bool(terminated) and reward > 0}
        for name in _SUCCESS:
            known["success"] = bool(info.get(name, known["success"]))
        if "score" in info:
            known["score"] = min(max(float(info["score"]), 0.0), 1.0)
        return StepResult(self._seen(shown, info), float(reward), bool(terminated), bool(truncated), known)

    def _seen(self, shown: Any, info: dict[str, Any]) -> Observation:
        listed = next((info[name] for name in _ADMISSIBLE if name in info), None)
        return Observation(str(shown), None if listed is None else tuple(map(str, listed)))

    def close(self) -> None:
        self._is_over = True
        self._env.close()
