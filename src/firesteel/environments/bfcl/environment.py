"""BFCL v4 as an environment: its multi-turn tasks on real backends, and its single-turn tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from firesteel.annotate import Rejection
from firesteel.environments.base import Environment
from firesteel.environments.bfcl.backends import Backends, turn_flaw
from firesteel.environments.bfcl.multi_turn import (
    ground_truth,
    multi_turn_tasks,
    offered_tools,
    shown_result,
    user_text,
)
from firesteel.environments.bfcl.package import GROUPS, MULTI_TURN, SINGLE_TURN
from firesteel.environments.bfcl.single_turn import single_turn_tasks
from firesteel.environments.tool_calls.environment import REASONING, ToolCalls
from firesteel.environments.tool_calls.formats import SCHEMAS, CallFormat, call_format, show_tools
from firesteel.environments.tool_calls.parsers import without_sections
from firesteel.environments.tool_calls.schema import argument_flaws
from firesteel.environments.tool_calls.tasks import Call, demonstrations_of
from firesteel.errors import ConfigError, EnvironmentFailed, TaskError
from firesteel.metrics import EpisodeRecord
from firesteel.plugins import nearest
from firesteel.types import ExpertStep, Observation, StepResult, Task

MAX_STEPS_PER_TURN = 20
DONE = "Done."

PARTS = {"train": range(0, 60), "validation": range(60, 80), "test": range(80, 100)}
"""How the scenarios of the multi-turn categories are divided for training, in hundredths by a hash of their number: a
scenario is in the same part in all four categories."""

RATINGS = {"unreadable": 1.0, "flawed": 3.0, "answer": 6.5, "several_calls": 7.5, "one_call": 8.5}
"""Scores of what a response would do. Above SPaRK's threshold of 6: ending the turn, calls that fit their schemas."""

_OPTIONS = ("format", "schemas", "terse", "category", "end_on_failure", "reasoning")


class Bfcl(Environment):
    """BFCL v4. In a multi-turn task the user speaks again whenever the agent answers without a call.

    A response with calls (in `format`) is executed on the backends, and its results are what is seen next; one without
    calls, or that cannot be read, ends the user's turn. After `MAX_STEPS_PER_TURN` executed responses in one turn the
    episode is lost, as in BFCL. At the end of a turn BFCL's rules compare the backends and the results with those of
    the ground truth (`turn_flaw`); with `end_on_failure` the episode ends at the first turn that fails, since it can
    only fail as a whole. Reward 1.0 for an episode without a failure. `info`: `success`, `score` (the share of turns
    before the first failure), `valid` (the response could be read) and `problem`.

    Single-turn tasks are those of `ToolCalls` with the checker "bfcl". With `reasoning` "allowed" their calls alone are
    judged, as BFCL's handlers do, whatever text stands around them; "refused" wants calls and nothing else. In
    multi-turn tasks the sections of reasoning are passed over either way.

    Splits are BFCL's categories, the groups of `GROUPS`, and for training "train", "validation" and "test": disjoint
    scenarios of `category`. Forks copy the backends.
    """

    fork_rung: ClassVar[str] = "native"

    def __init__(
        self,
        *,
        format: str = "hermes",
        schemas: str = "json",
        terse: bool = False,
        category: str = "multi_turn_base",
        end_on_failure: bool = True,
        reasoning: str = "allowed",
    ) -> None:
        _check_category(category)
        if schemas not in SCHEMAS:
            raise ConfigError(f"bfcl: schemas must be one of {SCHEMAS}, not {schemas!r}")
        if reasoning not in REASONING:
            raise ConfigError(f"bfcl: reasoning must be one of {REASONING}, not {reasoning!r}")
        self._format: CallFormat = call_format(format)
        self._schemas = schemas
        self._terse = terse
        self._end_on_failure = end_on_failure
        self._reasoning = reasoning
        self._single: ToolCalls | None = None
        self._model: Backends | None = None
        self._is_over = False

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The first `count` tasks of a split, in BFCL's order; `seed` does not matter."""
        del seed
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"bfcl has no option '{name}'{nearest(name, _OPTIONS)}; known: {', '.join(_OPTIONS)}")
        known = (*PARTS, *GROUPS, *SINGLE_TURN, *MULTI_TURN)
        if split not in known:
            raise TaskError(f"bfcl has no split '{split}'{nearest(split, known)}; known: {', '.join(known)}")
        category = str(options.get("category", "multi_turn_base"))
        _check_category(category)
        categories = (category,) if split in PARTS else GROUPS.get(split, (split,))
        multi = [name for name in categories if name in MULTI_TURN]
        if multi and call_format(str(options.get("format", "hermes"))).is_by_template:
            raise ConfigError(
                f"bfcl: multi-turn tasks ({multi[0]}) are shown as text: format=template is for single-turn ones, "
                "such as --split single_turn"
            )
        found = (task for name in categories for task in _tasks(name) if split not in PARTS or _part(task.id) == split)
        return [task for _, task in zip(range(count), found, strict=False)] if count is not None else list(found)

    @classmethod
    def figures(cls, records: Sequence[EpisodeRecord], **options: Any) -> dict[str, float | None]:
        """BFCL's own figures (`bfcl_summary`) and the accuracy of every category."""
        from firesteel.environments.bfcl.report import bfcl_counts, bfcl_summary

        del options
        return bfcl_summary(bfcl_counts(records))

    def reset(self, task: Task, *, seed: int) -> Observation:
        """Starts the conversation with fresh backends; `seed` changes nothing."""
        self._is_over = False
        if "entry" not in task.data:
            self._single = ToolCalls(
                format=self._format, checker="bfcl", schemas=self._schemas, terse=self._terse, reasoning=self._reasoning
            )  # fmt: skip
            observation = self._single.reset(task, seed=seed)
            self.goal = self._single.goal
            return observation
        self._single = None
        self._entry = task.data["entry"]
        long_context = "long_context" in task.id
        names, config = self._entry["involved_classes"], self._entry["initial_config"]
        self._truth_calls = ground_truth(self._entry["ground_truth"], names)
        self._model = Backends.load(config, names, long_context=long_context)
        self._truth = Backends.load(config, names, long_context=long_context)
        self._tools = offered_tools(self._entry, 0)
        self._turn, self._step, self._passed = 0, 0, 0
        self._results: list[str] = []
        self._problem: str | None = None
        self.goal = user_text(self._entry["question"][0])
        lines = ["Tools:", show_tools(self._tools, self._schemas), *self._rules()]
        for shown in demonstrations_of(task):
            lines += [f"Example: {shown.query}", self._format.write(shown.calls)]
        lines += [str(task.data["hint"])] if task.data.get("hint") else []
        return Observation("\n".join(lines))

    def _rules(self) -> list[str]:
        if self._terse:
            return []
        return [self._format.rule, f"When nothing is left to do, write {DONE} The user may then ask for more."]

    def step(self, action: str) -> StepResult:
        """Executes the calls of a response, or ends the user's turn where there are none."""
        if self._is_over:
            raise EnvironmentFailed("bfcl was stepped after its episode had ended; call reset first")
        if self._single is not None:
            self._is_over = True
            return self._single.step(action)
        if self._model is None:
            raise EnvironmentFailed("bfcl was stepped before its first reset; call reset(task, seed=...) first")
        parsed = self._format.read(without_sections(action), self._tools)
        is_valid = parsed.problem is None
        if not parsed.calls:
            return self._end_turn(is_valid)
        results = [self._model.call(call) for call in parsed.calls]
        self._results += results
        self._step += 1
        if self._step > MAX_STEPS_PER_TURN:
            self._problem = self._problem or f"more than {MAX_STEPS_PER_TURN} steps in a turn"
            return self._finish(is_valid)
        shown = map(shown_result, parsed.calls, results)
        return self._answer("\n".join(shown), is_valid)

    def rate(self, action: str) -> tuple[str, float]:
        """What a response would do, and how sound it looks, by rules that never see the ground truth (`RATINGS`)."""
        if self._model is None or self._is_over:
            return "answer", RATINGS["answer"]
        parsed = self._format.read(without_sections(action), self._tools)
        if parsed.problem is not None:
            return "unreadable", RATINGS["unreadable"]
        if not parsed.calls:
            return "answer", RATINGS["answer"]
        label = "+".join(sorted({call.name for call in parsed.calls}))
        schemas = {tool["name"]: tool["parameters"] for tool in self._tools}
        if any(call.name not in schemas or argument_flaws(call, schemas[call.name]) for call in parsed.calls):
            return label, RATINGS["flawed"]
        return label, RATINGS["one_call" if len(parsed.calls) == 1 else "several_calls"]

    def _end_turn(self, is_valid: bool) -> StepResult:
        assert self._model is not None
        wanted_calls = self._truth_calls[self._turn]
        wanted = [self._truth.call(call) for call in wanted_calls]
        flaw = turn_flaw(self._model, self._truth, self._step > 0, self._results, wanted) if wanted_calls else None
        if flaw is not None:
            self._problem = self._problem or f"turn {self._turn}: {flaw}"
        if self._problem is None:
            self._passed += 1
        self._turn, self._step = self._turn + 1, 0
        if self._turn == len(self._truth_calls) or (self._problem is not None and self._end_on_failure):
            return self._finish(is_valid)
        added = offered_tools(self._entry, self._turn)
        self._tools = [*self._tools, *added]
        text = user_text(self._entry["question"][self._turn])
        lines = ["These tools can be called now, too:", show_tools(added, self._schemas)] if added else []
        return self._answer("\n".join([*lines, *([f"Query: {text}"] if text else [])]), is_valid)

    def _answer(self, text: str, is_valid: bool) -> StepResult:
        return StepResult(Observation(text), info=self._info(False, is_valid))

    def _finish(self, is_valid: bool) -> StepResult:
        self._is_over = True
        success = self._problem is None
        return StepResult(
            Observation("The conversation is over."),
            float(success),
            terminated=True,
            info=self._info(success, is_valid),
        )

    def _info(self, success: bool, is_valid: bool) -> dict[str, Any]:
        score = self._passed / len(self._truth_calls)
        return {"success": success, "score": score, "valid": is_valid, "problem": self._problem}

    def fork(self) -> Bfcl:
        """A copy with backends of its own, those of the ground truth included."""
        twin = Bfcl.__new__(Bfcl)
        twin.__dict__.update(self.__dict__)
        if self._single is not None:
            twin._single = self._single.fork()
        elif self._model is not None:
            twin._model, twin._truth = self._model.copy(), self._truth.copy()
            twin._results = list(self._results)
        return twin

    def expert(self) -> ExpertStep | None:
        """The ground truth's calls of the turn in one response, then the end of the turn."""
        if self._is_over:
            return None
        if self._single is not None:
            return self._single.expert()
        calls: list[Call] = self._truth_calls[self._turn]
        if self._step == 0 and calls:
            return ExpertStep(self._format.write(calls), False, "call the tools")
        return ExpertStep(DONE, False, "nothing is left to do")


def _check_category(category: str) -> None:
    if category not in MULTI_TURN:
        raise ConfigError(f"bfcl: category must be one of {', '.join(MULTI_TURN)}, not '{category}'")


def _tasks(category: str) -> Iterator[Task]:
    """The tasks of a category that can be read."""
    read: Callable[[str], Iterator[Any]] = multi_turn_tasks if category in MULTI_TURN else single_turn_tasks
    for outcome in read(category):
        if not isinstance(outcome, Rejection):
            yield outcome if isinstance(outcome, Task) else outcome.to_task()


def _part(identity: str) -> str:
    """The part of `PARTS` that a multi-turn task's scenario belongs to."""
    number = identity.rpartition("_")[2]
    place = int.from_bytes(hashlib.blake2b(f"bfcl/{number}".encode(), digest_size=8).digest(), "big") % 100
    return next(name for name, places in PARTS.items() if place in places)
