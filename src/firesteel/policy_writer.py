"""The local policy model as the writer of candidates: real questions played by a small model."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from firesteel.context import HistoryStep
from firesteel.environments.question_rows import ANSWER, GOAL, format_question, read_answer
from firesteel.errors import AnswerInvalid
from firesteel.judged import ANSWER_THOUGHT, plain
from firesteel.judges.base import Situation
from firesteel.openai_client import Ledger
from firesteel.policy import Policy
from firesteel.prompts import format_step
from firesteel.rollout import derive_seed
from firesteel.tools import COT, Tool
from firesteel.types import Observation, Request, SamplingParams
from firesteel.writers import Candidates

LETTER_TOKENS = 4
"""The least room for an answer; an option's words are cut off where there is no more."""


class PolicyWriter:
    """Samples one thought, and after it one query for each action, whose name is given to the model.

    The prompts are those that the policy is trained and played with. A situation that does not fit into the model's
    context is an `AnswerInvalid`: its question is noted as failed.

    Args:
        temperature: Of thoughts and queries; the answer is greedy.
        max_tokens: Longest thought, and longest query.
    """

    name = "policy"

    def __init__(self, policy: Policy, *, temperature: float = 1.0, max_tokens: int = 64) -> None:
        self._policy, self._temperature, self._max_tokens = policy, temperature, max_tokens
        self._lock = threading.Lock()

    @property
    def ledger(self) -> Ledger:
        """Nothing is bought."""
        return Ledger()

    def write(self, situation: Situation, tools: Mapping[str, Tool], *, seed: int) -> Candidates:
        prompt = self._prompt(situation)
        (thought,) = self._complete(prompt, ["<think>"], "</think>", [derive_seed(seed, "thought")])
        thought = plain(thought) or "Go on."
        actions = [*sorted(tools), COT]
        begun = [f"<think>{thought}</think><action>{action}:" for action in actions]
        written = self._complete(prompt, begun, "</action>", [derive_seed(seed, action) for action in actions])
        queries = {action: plain(text) for action, text in zip(actions, written, strict=True)}
        shown = self._policy.context.decode_response(prompt)
        raw = "\n".join(f"{start}{text}" for start, text in zip(begun, written, strict=True))
        return Candidates(thought, queries, shown, raw)

    def answer(self, situation: Situation, *, seed: int) -> str | None:
        begun = f"<think>{ANSWER_THOUGHT}</think><action>{ANSWER}:"
        (text,) = self._complete(self._prompt(situation), [begun], "</action>", [seed], greedy=True)
        return read_answer(text, situation.question.options)

    def _prompt(self, situation: Situation) -> list[int]:
        """The token ids that the policy is shown before its next step."""
        context = self._policy.context
        seen = [format_question(situation.question), *(step.observation for step in situation.steps)]
        observations = [Observation(plain(text)) for text in seen]
        actions = [plain(f"{step.action}: {step.query}") for step in situation.steps]
        if context.mode == "window":
            past = [
                HistoryStep(before.text, action, plain(step.thought), "think")
                for before, action, step in zip(observations, actions, situation.steps, strict=False)
            ]
            return context.render(GOAL, past, observations[-1])
        token_ids = context.first(GOAL, observations[0])
        for step, action, after in zip(situation.steps, actions, observations[1:], strict=True):
            token_ids += context.encode_response(format_step("think", plain(step.thought), action))
            token_ids += context.next_turn(True, GOAL, after)
        return token_ids

    def _complete(
        self, prompt: Sequence[int], begun: Sequence[str], stop: str, seeds: Sequence[int], *, greedy: bool = False
    ) -> list[str]:
        """What the model writes after each beginning of a response, up to `stop`."""
        context, generator = self._policy.context, self._policy.generator
        starts = [[*prompt, *context.encode_response(text)[:-1]] for text in begun]
        longest = max(map(len, starts))
        needed = longest + (LETTER_TOKENS if greedy else self._max_tokens)
        if needed > generator.max_context:
            raise AnswerInvalid(
                f"a step needs {needed} tokens, and the model's context holds {generator.max_context}; take fewer "
                "steps, or a model with a longer context"
            )
        sampling = SamplingParams(
            min(self._max_tokens, generator.max_context - longest),
            temperature=0.0 if greedy else self._temperature,
            stop=(stop,),
        )
        requests = [Request(start, seed, sampling) for start, seed in zip(starts, seeds, strict=True)]
        with self._lock:
            completions = generator.generate(requests)
        return [context.decode_response(found.token_ids).partition(stop)[0].strip() for found in completions]
