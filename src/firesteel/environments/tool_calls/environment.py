"""Single-turn tool calling as an environment: the prompt shows tools and a query, one response answers it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from firesteel.environments.base import Environment
from firesteel.environments.tool_calls.checkers import CHECKERS, Checker, bfcl
from firesteel.environments.tool_calls.examples import INSTRUCTIONS, write_self_exemplifying
from firesteel.environments.tool_calls.formats import SCHEMAS, CallFormat, call_format
from firesteel.environments.tool_calls.generate import NUM_DRAWN, SPLITS, TASK_KINDS, make_task
from firesteel.environments.tool_calls.parsers import without_sections
from firesteel.environments.tool_calls.prompts import show_task
from firesteel.environments.tool_calls.tasks import (
    Call,
    Demonstration,
    ToolTask,
    Verdict,
    demonstration_of,
    demonstrations_of,
    tool_task,
)
from firesteel.environments.tool_calls.template import conversation_text
from firesteel.errors import ConfigError, EnvironmentFailed, TaskError
from firesteel.guard import readable
from firesteel.plugins import load, nearest
from firesteel.types import ExpertStep, Observation, StepResult, Task

REASONING = ("refused", "allowed")

_GENERATED = {"num_tools": 40, "documented": 0.5, "max_demonstrations": 4, "self_exemplifying": 0.25}
_FEWEST = {"num_tools": NUM_DRAWN, "max_demonstrations": 0}
_SHARES = ("documented", "self_exemplifying")
_MOST_TOLD = 5
"""How many rejections a warning names."""

_OPTIONS = ("source", "path", "format", "checker", "schemas", "terse", "reasoning", "exemplify", "self_exemplifying",
            "num_tools", "documented", "max_demonstrations")  # fmt: skip


class ToolCalls(Environment):
    """One query, some tools, one answer; then the episode ends with reward 1.0 or 0.0.

    `format` is how calls are written (`FORMATS`): "template" has the model's own chat template show the tools, and
    reads the form of calls that it writes. `checker` decides what is right (`CHECKERS`). `schemas` says whether tools
    are shown as "json" or as a short "signature", `terse` whether the sentence about the format is left out; a template
    knows neither.
    `reasoning` "refused" wants calls alone (the paper's format); "allowed" passes over `<think>`, `<explore>` and
    `<examples>` sections. `exemplify` puts ToolExpander's self-exemplifying instruction into every prompt (and allows
    the sections); tasks marked `self_exemplifying` (cold start) have it anyway. Under the checker "bfcl" the calls
    alone are judged, as in the benchmark: "allowed" passes over any text around them, and text that cannot be read
    calls nothing, which is right where no tool fits.

    Tasks come from `source`: "generated" (with `num_tools`, the share of `documented` ones, and for the split
    "cold_start" `max_demonstrations` and the share of `self_exemplifying` tasks), or a data set at `path`.
    `Task.demonstrations` and `Task.data["hint"]`, which rescues and curricula set, are shown in the prompt.

    The first observation holds everything but the query, which is in `goal`. `info` holds `success` (right and well
    written), `score` (the same as a number), `valid` (well written), `correct` and `problem`.
    """

    fork_rung: ClassVar[str] = "native"

    def __init__(
        self,
        *,
        format: str | CallFormat = "hermes",
        checker: str | Checker = "exact",
        schemas: str = "json",
        terse: bool = False,
        reasoning: str = "refused",
        exemplify: bool = False,
        **source: Any,
    ) -> None:
        _check_options(source)
        for name, value, known in (("schemas", schemas, SCHEMAS), ("reasoning", reasoning, REASONING)):
            if value not in known:
                raise ConfigError(f"tool_calls: {name} must be one of {', '.join(known)}; got {value!r}")
        for name, given in (("terse", terse), ("exemplify", exemplify)):
            if not isinstance(given, bool):
                raise ConfigError(f"tool_calls: {name} must be true or false; got {given!r}")
        self._format = call_format(format)
        if not (isinstance(checker, str) or callable(checker)):
            raise ConfigError(f"tool_calls: checker must be one of {', '.join(CHECKERS)}; got {checker!r}")
        self._check: Checker = load(checker, CHECKERS, kind="checker") if isinstance(checker, str) else checker
        self._schemas = schemas
        self._terse = terse
        self._reasoning = reasoning
        self._exemplify = exemplify
        self._task: ToolTask | None = None
        self._exemplifies = exemplify
        self._own_examples: tuple[Demonstration, ...] = ()
        self._is_over = False

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: Any) -> Sequence[Task]:
        """The first `count` tasks of a split; fewer are a prefix of more.

        Generated splits: "cold_start" (tools drawn anew for every task, demonstrations), "train", "validation" and
        "test_tasks" (one set of tools), "test_tools" (another); the sets are disjoint. Kinds come in shuffled rounds.
        Data sets have the splits of their files; `seed` does not matter to them. A warning tells what of them is left
        out, with ids and reasons; tasks whose accepted answer `format` cannot hold are.
        """
        _check_options(options)
        if count is not None and count < 0:
            raise TaskError(f"tool_calls split '{split}': count must be at least 0, not {count}")
        source = options.get("source", "generated")
        if source != "generated":
            from firesteel.environments.tool_calls.loaders import load_tasks

            tasks = load_tasks(
                source, options.get("path", ""), split, count, call_format(options.get("format", "hermes"))
            )
            if tasks.num_rejected:
                report = readable(tasks.report(most=_MOST_TOLD))
                warnings.warn(f"tool_calls: source '{source}', split '{split}': {report}", RuntimeWarning, stacklevel=2)
            return tasks
        if split not in SPLITS:
            raise TaskError(f"tool_calls has no split '{split}'{nearest(split, SPLITS)}; known: {', '.join(SPLITS)}")
        settings = {name: options.get(name, value) for name, value in _GENERATED.items()}
        count = SPLITS[split].count if count is None else count
        kinds = _kinds(split, seed, count)
        return [make_task(split, seed, index, kind, **settings) for index, kind in enumerate(kinds)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        """Shows the task; `seed` changes nothing. A demonstration that the format cannot hold fails the episode."""
        del seed
        self._task = tool_task(task)
        self._is_over = False
        self._exemplifies = self._exemplify or bool(task.data.get("self_exemplifying"))
        self._own_examples = tuple(map(demonstration_of, task.data.get("own_examples", ())))
        self.goal = self._task.query
        try:
            return Observation(self._shown(self._task, demonstrations_of(task), str(task.data.get("hint", ""))))
        except ConfigError as error:
            raise EnvironmentFailed(f"task '{task.id}' cannot be shown: {error}") from error

    def _shown(self, task: ToolTask, demonstrations: Sequence[Demonstration], hint: str) -> str:
        instruction = INSTRUCTIONS["terse" if self._terse else "full"] if self._exemplifies else ""
        if self._format.is_by_template:
            return conversation_text(task, demonstrations, "\n".join(filter(None, (instruction, hint))))
        return show_task(
            task, self._format, schemas=self._schemas, demonstrations=demonstrations, hint=hint,
            instruction=instruction, is_terse=self._terse,
        )  # fmt: skip

    def step(self, action: str) -> StepResult:
        """Reads the calls, checks them and ends the episode."""
        task = self._running()
        self._is_over = True
        verdict, is_valid = self.judge(action, task)
        success = verdict.correct and is_valid
        return StepResult(
            Observation("Done."),
            reward=float(success),
            terminated=True,
            info={
                "success": success,
                "score": float(success),
                "valid": is_valid,
                "correct": verdict.correct,
                "problem": verdict.problem,
            },
        )

    def judge(self, text: str, task: ToolTask) -> tuple[Verdict, bool]:
        """Whether the calls of a text are right, and whether nothing stands around them (but allowed sections).

        For a task on which no call is right, any text without calls is well written; by BFCL's rules, so is one whose
        calls cannot be read. Under these rules and `reasoning` "allowed" any text may stand around the calls.
        """
        is_lenient = self._reasoning == "allowed" or self._exemplifies
        is_bfcl = self._check is bfcl
        wants_none = any(not answer for answer in task.answers)
        parsed = self._format.read(without_sections(text) if is_lenient else text, task.tools)
        if parsed.problem is not None and not (is_bfcl and wants_none):
            return Verdict(False, parsed.problem), False
        verdict = self._check(parsed.calls, task)
        may_have_text = (wants_none and not parsed.calls) or (is_bfcl and self._reasoning == "allowed")
        return verdict, may_have_text or not parsed.outside

    def fork(self) -> ToolCalls:
        """A copy; tasks are immutable and shared."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def expert(self) -> ExpertStep | None:
        """The first accepted answer in this format, after the task's own examples where it has them.

        Where only the checker knows what is right: a call of the first tool, or None where that is wrong.
        """
        if self._is_over:
            return None
        task = self._running()
        calls = task.reference
        if not task.answers:
            calls = tuple(Call(tool["name"]) for tool in task.tools[:1])
            if not calls or not self._check(calls, task).correct:
                return None
        try:
            text = self._format.write(calls) if calls else "None of the tools fits."
        except ConfigError as error:
            raise EnvironmentFailed(f"task '{task.id}' has no expert: {error}") from error
        if self._exemplifies and self._own_examples:
            text = write_self_exemplifying(text, self._own_examples, "as in the examples")
        return ExpertStep(text, False, "call the tool" if calls else "no tool fits")

    def _running(self) -> ToolTask:
        if self._task is None:
            raise EnvironmentFailed("tool_calls was stepped before its first reset; call reset(task, seed=...) first")
        if self._is_over:
            raise EnvironmentFailed("tool_calls was stepped after its episode had ended; call reset first")
        return self._task


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(
                f"tool_calls has no option '{name}'{nearest(name, _OPTIONS)}; known: {', '.join(_OPTIONS)}"
            )
        value, least = options[name], _FEWEST.get(name)
        if name in ("source", "path") and not isinstance(value, str):
            raise ConfigError(f"tool_calls: {name} must be text; got {value!r}")
        if least is not None and (type(value) is not int or value < least):
            raise ConfigError(f"tool_calls: {name} must be a whole number from {least} on; got {value!r}")
        if name in _SHARES and not (type(value) in (int, float) and 0 <= value <= 1):
            raise ConfigError(f"tool_calls: {name} must be a share from 0 to 1; got {value!r}")


def _kinds(split: str, seed: int, count: int) -> list[str]:
    """Kinds in shuffled rounds, each of which holds every kind once."""
    rng = random.Random(f"tool_calls/kinds/{split}/{seed}")
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(TASK_KINDS, len(TASK_KINDS))
    return drawn[:count]
