"""What a judge is shown, and what it answers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from firesteel.environments.question_rows import LETTERS, Question
from firesteel.openai_client import Ledger
from firesteel.tools import COT, Tool, ToolResult

LOWEST_SCORE, HIGHEST_SCORE = 0.0, 10.0


@dataclass(frozen=True, slots=True)
class PastStep:
    """One step that was taken."""

    thought: str
    action: str
    query: str
    observation: str


@dataclass(frozen=True, slots=True)
class Situation:
    """A question and the steps so far. It holds no key: `question.answer` is empty and its index is -1."""

    question: Question
    steps: tuple[PastStep, ...] = ()

    @classmethod
    def start(cls, question: Question) -> Situation:
        """The situation before the first step."""
        return cls(replace(question, answer="", answer_index=-1))

    def after(self, step: PastStep) -> Situation:
        """The situation after one more step."""
        return Situation(self.question, (*self.steps, step))

    def has_tried(self, action: str, query: str) -> bool:
        """Whether the same query was already run."""
        return any((step.action, step.query) == (action, query) for step in self.steps)

    @property
    def context(self) -> str:
        """The steps as text, oldest first; "" before the first."""
        return "\n".join(
            f"Thought: {step.thought}\nAction: {step.action}: {step.query}\nObservation: {step.observation}"
            for step in self.steps
        )

    @property
    def text(self) -> str:
        """The question with its options, and the steps."""
        options = (f"{letter}. {option}" for letter, option in zip(LETTERS, self.question.options, strict=False))
        return "\n".join([self.question.question, *options, *([self.context] if self.steps else [])])


class Judge(Protocol):
    """Scores the candidate actions of a step, and says afterwards whether the executed step was sound.

    `sees_key` is True for a judge that knows right answers: results with it are an arm of their own.
    `ledger` is what it has cost so far. Judges are safe to call from several threads.
    """

    name: str
    sees_key: bool

    @property
    def ledger(self) -> Ledger: ...

    def score(self, situation: Situation, thought: str, candidates: Mapping[str, str]) -> dict[str, float]:
        """One score in [0, 10] for each candidate (action to query)."""
        ...

    def process_ok(self, situation: Situation, step: PastStep) -> bool:
        """Whether the step that was taken in `situation` is sound."""
        ...


@dataclass(slots=True)
class ToolRunner:
    """Runs queries, and remembers what they gave: judging a candidate and then choosing it runs it once."""

    tools: Mapping[str, Tool]
    capacity: int = 4096
    _known: OrderedDict[tuple[str, str], ToolResult] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=threading.Lock)

    def run(self, action: str, query: str) -> ToolResult:
        """What the action yields; chain-of-thought yields nothing new, an unknown action an error."""
        if action == COT:
            return ToolResult("Go on.")
        if action not in self.tools:
            return ToolResult(f"error: there is no tool '{action}'", ok=False)
        key = (action, query)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        result = self.tools[action].call(query)
        with self._lock:
            self._known[key] = result
            while len(self._known) > self.capacity:
                self._known.popitem(last=False)
        return result
