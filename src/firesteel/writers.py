"""Who writes the thought and the candidate queries of a step, and the answer at the end."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from firesteel.environments.question_rows import LETTERS, read_letter
from firesteel.environments.tool_questions.queries import write_query
from firesteel.errors import ConfigError
from firesteel.judges.base import Situation
from firesteel.judges.matching import match_option, vote
from firesteel.openai_client import ChatClient, Ledger, Message
from firesteel.tools import COT, Tool


@dataclass(frozen=True, slots=True)
class Candidates:
    """One step's thought and one query for each action. `prompt` is what the writer was shown, `raw` what it wrote."""

    thought: str
    queries: Mapping[str, str]
    prompt: str
    raw: str = ""


class Writer(Protocol):
    """Writes candidates. Safe to call from several threads; `seed` alone decides what is random."""

    name: str

    @property
    def ledger(self) -> Ledger: ...

    def write(self, situation: Situation, tools: Mapping[str, Tool], *, seed: int) -> Candidates:
        """The next step's candidates: one for each tool, and one for `cot`."""
        ...

    def answer(self, situation: Situation, *, seed: int) -> str | None:
        """The letter that the steps lead to; None where they lead to none."""
        ...


class TemplateWriter:
    """Writes from what a generated question says (with slips), and plainly for any other; answers by vote.

    It is no model: what it shows is that the pipeline works, and it makes demonstrations for small models.

    Args:
        slips: Whether some queries hold a mistake.
        guess: Whether a drawn option is the answer where the steps lead to none, as for most real questions.
    """

    name = "template"

    def __init__(self, *, slips: bool = True, guess: bool = False) -> None:
        for option, value in (("slips", slips), ("guess", guess)):
            if not isinstance(value, bool):
                raise ConfigError(f"writer 'template': {option} must be true or false, got {value!r}")
        self._slips, self._guess = slips, guess

    @property
    def ledger(self) -> Ledger:
        """Nothing is spent."""
        return Ledger()

    def write(self, situation: Situation, tools: Mapping[str, Tool], *, seed: int) -> Candidates:
        rng = random.Random(seed)
        seen = [step.observation for step in situation.steps]
        question = situation.question
        queries = {
            action: write_query(question, tool.name, rng, seen=seen, slips=self._slips)
            for action, tool in sorted(tools.items())
        }
        queries[COT] = self._reasoning(situation)
        return Candidates(self._thought(situation), queries, situation.text)

    def answer(self, situation: Situation, *, seed: int) -> str | None:
        index = self._voted(situation)
        if index is None and self._guess:
            index = random.Random(seed).randrange(len(situation.question.options))
        return None if index is None else LETTERS[index]

    def _voted(self, situation: Situation) -> int | None:
        return vote((step.observation for step in situation.steps), situation.question.options)

    def _reasoning(self, situation: Situation) -> str:
        index = self._voted(situation)
        spoken = "no option" if index is None else situation.question.options[index]
        return f"After {len(situation.steps)} steps the observations speak for {spoken}."

    def _thought(self, situation: Situation) -> str:
        if not situation.steps:
            return "Nothing is known yet; a tool should say more."
        last = situation.steps[-1]
        if last.observation.startswith("error:"):
            return f"{last.action} failed; another way is needed."
        if match_option(last.observation, situation.question.options) is None:
            return "That names no option yet."
        return "That names an option; another tool should confirm it."


_WRITING = """\
You answer a multiple-choice question step by step, with tools. You are shown the question, the steps so far, and the \
tools. Write one short thought about what to do next, and for every action the query that you would give it now, even \
if you would not choose that action. For "cot" the query is a piece of reasoning in words.
Answer with one JSON object: {"thought": "...", "queries": {"<action>": "<query>", ...}}"""

_ANSWERING = """\
You have worked on a multiple-choice question with tools. You are shown the question and the steps. Answer with one \
JSON object: {"answer": "<letter of one option>"}"""


class LlmWriter:
    """Has a model behind an OpenAI-compatible server write candidates and answers; the wording is ours."""

    name = "llm"

    def __init__(self, client: ChatClient, *, temperature: float = 0.7, max_tokens: int | None = 1500) -> None:
        self._client, self._temperature, self._max_tokens = client, temperature, max_tokens

    @property
    def ledger(self) -> Ledger:
        """What the client has cost so far."""
        return self._client.ledger

    def write(self, situation: Situation, tools: Mapping[str, Tool], *, seed: int) -> Candidates:
        listed = "\n".join(f"- {action}: {tool.description}. Example: {tool.example}" for action, tool in tools.items())
        prompt = f"{situation.text}\n\nActions:\n{listed}\n- {COT}: reason in words"
        actions = [*sorted(tools), COT]
        answer = self._client.complete_json(
            self._messages(_WRITING, prompt),
            schema=queries_schema(actions),
            validator=lambda found: check_queries(found, actions),
            temperature=self._temperature,
            max_tokens=self._max_tokens,
            seed=seed,
        )
        thought, queries = check_queries(answer, actions)
        return Candidates(thought, queries, prompt, str(answer))

    def answer(self, situation: Situation, *, seed: int) -> str | None:
        count = len(situation.question.options)
        found = self._client.complete_json(
            self._messages(_ANSWERING, situation.text),
            validator=lambda answer: _require_letter(answer, count),
            max_tokens=self._max_tokens,
            seed=seed,
        )
        return _require_letter(found, count)

    def _messages(self, system: str, user: str) -> list[Message]:
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def queries_schema(actions: Sequence[str]) -> dict[str, Any]:
    """The JSON Schema of a step's candidates."""
    queries = {
        "type": "object",
        "properties": {action: {"type": "string"} for action in actions},
        "required": list(actions),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"thought": {"type": "string"}, "queries": queries},
        "required": ["thought", "queries"],
        "additionalProperties": False,
    }


def check_queries(answer: Mapping[str, Any], actions: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The thought and the queries of an answer; `ValueError` where one is missing or no text."""
    thought, queries = answer["thought"], answer["queries"]
    if not isinstance(thought, str) or not isinstance(queries, dict):
        raise ValueError("wanted 'thought' as text and 'queries' as an object")
    wrong = [action for action in actions if not isinstance(queries.get(action), str)]
    if wrong or set(queries) != set(actions):
        raise ValueError(f"wanted one query, a text, for exactly {sorted(actions)}, got {sorted(queries)}")
    return thought, {action: queries[action] for action in sorted(actions)}


def _require_letter(answer: Mapping[str, Any], count: int) -> str:
    letter = read_letter(str(answer["answer"]), count)
    if letter is None:
        raise ValueError(f"the answer {answer['answer']!r} is none of the letters {LETTERS[0]} to {LETTERS[count - 1]}")
    return letter


WRITERS: dict[str, str] = {
    "llm": "firesteel.writers:LlmWriter",
    "policy": "firesteel.policy_writer:PolicyWriter",
    "template": "firesteel.writers:TemplateWriter",
}
