"""The environment that asks multiple-choice questions, with tools to answer them."""

from __future__ import annotations

import atexit
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from firesteel.environments.base import Environment
from firesteel.environments.question_rows import (
    ANSWER,
    GOAL,
    Question,
    format_question,
    parse_action,
    question_of,
    read_answer,
)  # fmt: skip
from firesteel.errors import ConfigError, TaskError, ToolFailed
from firesteel.metrics import EpisodeRecord
from firesteel.plugins import nearest
from firesteel.tools import COT, Tool, close_tools, make_tools
from firesteel.tools.base import query_of
from firesteel.types import Observation, StepResult, Task


@lru_cache(maxsize=16)
def _shared(names: str, options: str) -> dict[str, Tool]:
    tools = make_tools(json.loads(names), json.loads(options))
    atexit.register(close_tools, tools)
    return tools


def shared_tools(names: str | Sequence[str] | Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Tool]:
    """The tools of some settings, made once in a process: they hold no state, but programs that run."""
    return _shared(json.dumps(names), json.dumps(options, sort_keys=True))


class QuestionEnvironment(Environment):
    """Asks one question. An action is `tool: query`, `cot: thought`, or `answer: letter`, which ends the episode.

    Subclasses give `tasks`. Nothing that the agent sees names the right option.

    Args:
        tools: A preset of `TOOL_PRESETS`, tool names, or action names with the tools behind them.
        tool_options: Constructor arguments of tools, by action name.
    """

    fork_rung = "native"
    is_self_contained = False
    example_actions = ("calculator: 2 + 2", "cot: nothing to work out", "answer: A")
    task_options: ClassVar[tuple[str, ...]] = ("categories",)

    def __init__(
        self,
        tools: str | Sequence[str] | Mapping[str, str] = "offline",
        tool_options: Mapping[str, Any] | None = None,
        **options: object,
    ) -> None:
        """`options` are those of `tasks`; `ConfigError` for any other."""
        self.check_options(options)
        self.tools = shared_tools(tools, {**self.default_tool_options(tools), **(tool_options or {})})
        self.question: Question | None = None
        self.over = True

    @classmethod
    def check_options(cls, options: Mapping[str, object]) -> None:
        """Raises `ConfigError` for an option that neither the constructor nor `tasks` knows."""
        known = ("tools", "tool_options", *cls.task_options)
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"{cls.__name__} has no option '{name}'{nearest(name, known)}; known: {', '.join(known)}"
                )

    @classmethod
    def figures(cls, records: Sequence[EpisodeRecord], **options: Any) -> dict[str, float | None]:
        """How the tools were chosen, and whether they worked.

        The entropy of the choice in nats, overall and by category, coverage, calls an episode; of every action its
        share of the calls, and of every tool the share of its calls that worked.
        """
        from firesteel.tool_evaluation import entropy_of_kinds, tool_report

        names = {name: value for name, value in options.items() if name in ("tools", "tool_options")}
        known = list(cls(**names).tools)
        report = tool_report(records, known)
        kept = ("entropy", "entropy_low", "entropy_high", "coverage", "calls", "ok")
        figures = {name: report[name] for name in kept}
        figures |= {f"entropy/{kind}": value for kind, value in entropy_of_kinds(records, known).items()}
        figures |= {name: value for name, value in report.items() if name.startswith(("rate/", "ok/"))}
        return {f"tools/{name}": value for name, value in figures.items()}

    @classmethod
    def default_tool_options(cls, tools: object) -> dict[str, Any]:
        """Options that the environment's own questions need, for the tools that are there."""
        del tools
        return {}

    def reset(self, task: Task, *, seed: int) -> Observation:
        del seed
        self.question = question_of(task)
        self.over = False
        self.goal = GOAL
        return Observation(format_question(self.question))

    def step(self, action: str) -> StepResult:
        if self.question is None or self.over:
            raise TaskError(f"{type(self).__name__}: step before reset, or after the answer; call reset first")
        name, text = parse_action(action)
        if name == ANSWER:
            letter = read_answer(text, self.question.options)
            if letter is None:
                return _not_understood(f"'{text[:20]}' is no option; answer with one letter")
            self.over = True
            won = letter == self.question.answer
            return StepResult(
                Observation("The question is answered."), float(won), terminated=True,
                info={"success": won, "score": float(won), "valid": True},
            )  # fmt: skip
        if name == COT and text:
            return StepResult(Observation("Go on."), info={"success": False, "score": 0.0, "valid": True})
        if name not in self.tools:
            return _not_understood(
                f"the actions are {', '.join([*self.tools, COT, ANSWER])}, each with ': ' and a text"
            )
        try:
            result = self.tools[name].call(query_of(text))
        except ToolFailed as error:
            return _not_understood(str(error))
        info = {"success": False, "score": 0.0, "valid": True, "tool": name, "tool_ok": result.ok}
        return StepResult(Observation(result.text), info=info)

    def fork(self) -> Environment:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy


def chosen_categories(options: Mapping[str, object]) -> list[str] | None:
    """The option `categories` as a list; None where it is not given."""
    given = options.get("categories")
    if given is None:
        return None
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given) or not given:
        raise ConfigError(f"the option 'categories' must be a list of names, got {given!r}")
    return list(given)


def _not_understood(message: str) -> StepResult:
    return StepResult(Observation(f"not understood: {message}"), info={"success": False, "score": 0.0, "valid": False})
