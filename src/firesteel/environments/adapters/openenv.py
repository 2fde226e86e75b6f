"""An environment behind an OpenEnv server, through the client class that comes with it."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from firesteel.environments.adapters.rows import class_tasks
from firesteel.environments.base import Environment
from firesteel.errors import ConfigError, EnvironmentFailed
from firesteel.types import Observation, StepResult, Task

_NOT_SHOWN = ("done", "reward", "metadata")


class OpenEnvClient(Environment):
    """Plays through an OpenEnv client (`EnvClient` or its `sync()`). Made by `adapt`. Forks by checked replay.

    Options:
        base_url: the server's address.
        goal: the instruction, where the task has none.
        observation_field: the entry of an observation that is shown. Without it, or where an observation lacks it, its
            only text is shown, else all of it as JSON.
        tasks, num_tasks: as for `ToolClass`; a task's data and its seed go to `reset`.
        success_reward: an episode whose rewards add up to this is a success.
        Every other option goes to the client's constructor.

    An action is the JSON of the client's action class; text that is no JSON fills its only required text field. The
    server must allow as many sessions as episodes are open (`SUPPORTS_CONCURRENT_SESSIONS`).
    """

    is_self_contained = False
    made_by: ClassVar[Callable[..., Any]]
    client_class: ClassVar[type]

    def __init__(
        self,
        *,
        base_url: str,
        goal: str = "",
        observation_field: str | None = None,
        tasks: str | None = None,
        num_tasks: int = 100,
        success_reward: float = 1.0,
        **options: Any,
    ) -> None:
        del tasks, num_tasks
        client = type(self).made_by(base_url=base_url, **options)
        self._client = client.sync() if hasattr(client, "sync") else client
        if inspect.iscoroutinefunction(self._client.step):
            raise ConfigError(f"{type(self).__name__}: its step is async and it has no sync(); wrap it in a plain one")
        self._action_class = _action_class(type(self).client_class)
        self._instruction = goal or inspect.cleandoc(type(self).__doc__ or "").split("\n")[0] or "Reach the goal."
        self._field = observation_field
        self._success_reward = success_reward
        self._total = 0.0
        self._is_over = True

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The class's own tasks, those of the option `tasks`, or numbered ones."""
        return class_tasks(cls.made_by, cls.__name__, split, count, seed, options)

    def reset(self, task: Task, *, seed: int) -> Observation:
        result = self._client.reset(**{"seed": seed, **task.data})
        self.goal = str(task.data.get("goal") or self._instruction)
        self._total, self._is_over = 0.0, bool(result.done)
        return Observation(self._text(result.observation))

    def step(self, action: str) -> StepResult:
        if self._is_over:
            raise EnvironmentFailed(f"{type(self).__name__}: stepped before a reset or after the end; call reset first")
        try:
            sent = self._sent(action)
        except (ValidationError, ValueError) as error:
            problem = " ".join(str(error).split("For further")[0].split())
            return StepResult(Observation(f"That is no action here: {problem:.400}"), info={"valid": False})
        result = self._client.step(sent)
        reward = float(result.reward or 0.0)
        self._total += reward
        self._is_over = bool(result.done)
        score = min(max(self._total / self._success_reward, 0.0), 1.0)
        info = {"success": self._total >= self._success_reward, "score": score}
        return StepResult(Observation(self._text(result.observation)), reward, self._is_over, info=info)

    def _sent(self, action: str) -> Any:
        """The action as the client takes it: an object of its action class, or a dictionary."""
        try:
            content = json.loads(action)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, Mapping):
            content = {_only_text_field(self._action_class): action}
        if self._action_class is dict:
            return dict(content)
        return TypeAdapter(self._action_class).validate_python(content)

    def _text(self, observation: Any) -> str:
        content = observation.model_dump() if hasattr(observation, "model_dump") else observation
        if not isinstance(content, Mapping):
            return str(content if not hasattr(content, "__dict__") else vars(content))
        if self._field in content:
            return str(content[self._field])
        shown = {name: value for name, value in content.items() if name not in _NOT_SHOWN}
        texts = [value for value in shown.values() if isinstance(value, str)]
        return texts[0] if len(texts) == 1 else json.dumps(shown, default=str)

    def close(self) -> None:
        self._is_over = True
        self._client.close()


def _action_class(client_class: type) -> Any:
    """The first type argument of the client's base, `EnvClient[Action, Observation, State]`; `dict` if not given."""
    for cls in client_class.__mro__:
        for base in getattr(cls, "__orig_bases__", ()):
            arguments = typing.get_args(base)
            if arguments and not isinstance(arguments[0], typing.TypeVar):
                found = typing.get_origin(arguments[0]) or arguments[0]
                return found if isinstance(found, type) and not issubclass(found, Mapping) else dict
    return dict


def _only_text_field(action_class: Any) -> str:
    """The name of the one required text field of an action class; raises `ValueError` where there is no such one."""
    fields = getattr(action_class, "model_fields", {})
    texts = [name for name, field in fields.items() if field.annotation is str and field.is_required()]
    if len(texts) != 1:
        wanted = f" with the fields {', '.join(fields)}" if fields else ""
        raise ValueError(f"wanted a JSON object{wanted}")
    return texts[0]
