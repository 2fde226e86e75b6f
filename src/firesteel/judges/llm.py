"""A language model behind an OpenAI-compatible server as a judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from firesteel.judges.base import HIGHEST_SCORE, LOWEST_SCORE, PastStep, Situation
from firesteel.openai_client import ChatClient, Ledger, Message

_SCORING = """\
You judge how an assistant should go on with a multiple-choice question. You are shown the question, the steps so far, \
the assistant's current thought, and several candidate actions, each with the query that it would run.
Score every candidate from 0 (useless or wrong) to 10 (exactly what is needed next). Judge whether the action fits the \
question, whether its query is well formed, and whether its result would bring the answer closer. Do not answer the \
question. Scores need not differ."""

_PROCESS = """\
You judge one step of an assistant that answers a multiple-choice question with tools. You are shown the question, \
the steps before, and the step with its observation. A step is sound if its thought follows from what was known, its \
action fits the thought, and its query could be run. Its result may still be disappointing. You are not told the \
right answer."""


def scoring_messages(situation: Situation, thought: str, candidates: Mapping[str, str]) -> list[Message]:
    """The conversation that asks for scores."""
    listed = "\n".join(f"- {action}: {query}" for action, query in sorted(candidates.items()))
    form = ", ".join(f'"{action}": <0-10>' for action in sorted(candidates))
    text = (
        f"{situation.text}\n\nThought: {thought}\n\nCandidate actions:\n{listed}\n\n"
        f'Answer with one JSON object: {{"scores": {{{form}}}}}'
    )
    return [{"role": "system", "content": _SCORING}, {"role": "user", "content": text}]


def process_messages(situation: Situation, step: PastStep) -> list[Message]:
    """The conversation that asks whether a step is sound."""
    text = (
        f"{situation.text}\n\nThe step to judge:\nThought: {step.thought}\nAction: {step.action}: {step.query}\n"
        f'Observation: {step.observation}\n\nAnswer with one JSON object: {{"process_ok": true or false}}'
    )
    return [{"role": "system", "content": _PROCESS}, {"role": "user", "content": text}]


def scores_schema(actions: Sequence[str]) -> dict[str, Any]:
    """The JSON Schema of an answer with scores."""
    number = {"type": "number", "minimum": LOWEST_SCORE, "maximum": HIGHEST_SCORE}
    scores = {
        "type": "object",
        "properties": {action: number for action in sorted(actions)},
        "required": sorted(actions),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"scores": scores},
        "required": ["scores"],
        "additionalProperties": False,
    }


PROCESS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"process_ok": {"type": "boolean"}},
    "required": ["process_ok"],
    "additionalProperties": False,
}


def check_scores(answer: Mapping[str, Any], actions: Sequence[str]) -> dict[str, float]:
    """The scores of an answer, all of them and nothing else.

    Raises:
        ValueError: one is missing, unknown, no number, or outside 0 to 10.
    """
    scores = answer["scores"]
    if not isinstance(scores, dict) or set(scores) != set(actions):
        raise ValueError(f"wanted scores of exactly {sorted(actions)}, got {scores!r:.200}")
    for action, score in scores.items():
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not is_number or not math.isfinite(score) or not LOWEST_SCORE <= score <= HIGHEST_SCORE:
            raise ValueError(f"the score of '{action}' is {score!r}, wanted a number from 0 to 10")
    return {action: float(score) for action, score in scores.items()}


def check_process(answer: Mapping[str, Any]) -> bool:
    """The verdict of an answer; `ValueError` where it is neither true nor false."""
    if not isinstance(answer["process_ok"], bool):
        raise ValueError(f"process_ok is {answer['process_ok']!r}, wanted true or false")
    return answer["process_ok"]


class LlmJudge:
    """Asks a model for scores and verdicts, as SPaRK asks GPT-4o; the wording is ours.

    Retries, rate limits, the disk cache and the budget are those of the client. An answer that is no score is asked
    for again; `AnswerInvalid` after the client's last attempt.
    """

    name = "llm"
    sees_key = False

    def __init__(self, client: ChatClient, *, max_tokens: int | None = 400) -> None:
        self._client, self._max_tokens = client, max_tokens

    @property
    def ledger(self) -> Ledger:
        """What the client has cost so far."""
        return self._client.ledger

    def score(self, situation: Situation, thought: str, candidates: Mapping[str, str]) -> dict[str, float]:
        actions = list(candidates)
        validator: Callable[[dict[str, Any]], object] = lambda answer: check_scores(answer, actions)  # noqa: E731
        answer = self._client.complete_json(
            scoring_messages(situation, thought, candidates),
            schema=scores_schema(actions),
            validator=validator,
            max_tokens=self._max_tokens,
        )
        return check_scores(answer, actions)

    def process_ok(self, situation: Situation, step: PastStep) -> bool:
        answer = self._client.complete_json(
            process_messages(situation, step),
            schema=PROCESS_SCHEMA,
            validator=check_process,
            max_tokens=self._max_tokens,
        )
        return check_process(answer)
