"""The wording of prompts and responses: one `PromptSet` per name in `PROMPTS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firesteel.responses import REASONING_TAGS as REASONING_TAGS
from firesteel.responses import ParsedResponse, parse_response
from firesteel.types import ExpertStep

TAGS = ("<explore>", "</explore>", "<think>", "</think>", "<action>", "</action>")

Pair = tuple[str, str]
"""One past step as prompts show it: the observation's text and what the agent answered to it."""


def format_step(tag: str, reasoning: str, action: str) -> str:
    """A response in the one valid form: a reasoning tag followed by an action tag, nothing around them."""
    return f"<{tag}>{reasoning}</{tag}><action>{action}</action>"


def format_response(step: ExpertStep) -> str:
    """The response that supervised fine-tuning teaches for an expert's step."""
    return format_step("explore" if step.explore else "think", step.reason, step.action)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Three functions that write user messages, each called with keywords alone, and two for the responses.

    `opening(goal, observation, admissible)` starts an episode, `turn(goal, observation, admissible)` follows a
    response when the history stays in the context, and `window(goal, num_steps, history, observation,
    admissible)` is a complete prompt that shows only the given `history`, oldest pair first.
    `admissible` is None where actions are not listed. `parse(text)` reads a response, `write(step)` is the response
    that supervised learning teaches for an expert's step; `parse` reads what `write` writes.

    `whole(tokenizer, observation, options)`, where given, writes the first prompt in place of `opening`: the text that
    the chat template gives with these options.
    """

    opening: Callable[..., str]
    turn: Callable[..., str]
    window: Callable[..., str]
    parse: Callable[[str], ParsedResponse] = parse_response
    write: Callable[[ExpertStep], str] = format_response
    whole: Callable[[Any, str, Mapping[str, Any]], str] | None = None


def _listed(observation: str, admissible: Sequence[str] | None) -> str:
    return observation if admissible is None else f"{observation}\nActions: {'; '.join(admissible)}"


def _compact_turn(*, goal: str, observation: str, admissible: Sequence[str] | None) -> str:
    del goal
    return _listed(observation, admissible)


def _compact_opening(*, goal: str, observation: str, admissible: Sequence[str] | None) -> str:
    return f"{goal}\n{_listed(observation, admissible)}"


def _compact_window(
    *, goal: str, num_steps: int, history: Sequence[Pair], observation: str, admissible: Sequence[str] | None
) -> str:
    return f"{goal}\n{_past(num_steps, history)}{_listed(observation, admissible)}"


def _goal_last(*, goal: str, observation: str, admissible: Sequence[str] | None) -> str:
    return f"{_listed(observation, admissible)}\n{goal}"


def _goal_last_window(
    *, goal: str, num_steps: int, history: Sequence[Pair], observation: str, admissible: Sequence[str] | None
) -> str:
    return f"{_past(num_steps, history)}{_listed(observation, admissible)}\n{goal}"


def _past(num_steps: int, history: Sequence[Pair]) -> str:
    if num_steps == 0:
        return ""
    return f"[{num_steps}]\n" + "".join(f"{seen}\n> {response}\n" for seen, response in history)


_SPARK_ROLE = "You act in a world that answers in text. Work step by step until the task is done."

_SPARK_RULES = """\
Answer with one short sentence of reasoning, then one action.
Put the sentence in exactly one of two tags:
<explore>...</explore> when the last result surprised you or you lack information, so that several actions \
are worth trying;
<think>...</think> when things go as planned and the next action is clear.
After it, put exactly one action in <action>...</action>."""


def _spark_turn(*, goal: str, observation: str, admissible: Sequence[str] | None) -> str:
    del goal
    lines = [f"Current observation: {observation}"]
    if admissible is not None:
        lines.append("Possible actions:")
        lines.extend(f"- {action}" for action in admissible)
    return "\n".join(lines)


def _spark_opening(*, goal: str, observation: str, admissible: Sequence[str] | None) -> str:
    turn = _spark_turn(goal=goal, observation=observation, admissible=admissible)
    return f"{_SPARK_ROLE}\nTask: {goal}\n\n{turn}\n\n{_SPARK_RULES}"


def _spark_window(
    *, goal: str, num_steps: int, history: Sequence[Pair], observation: str, admissible: Sequence[str] | None
) -> str:
    if num_steps == 0:
        return _spark_opening(goal=goal, observation=observation, admissible=admissible)
    lines = [f"Steps taken so far: {num_steps}."]
    if history:
        lines.append(f"The last {len(history)}, oldest first:")
    for number, (seen, response) in enumerate(history, start=num_steps - len(history) + 1):
        lines.append(f"[{number}] Observation: {seen}")
        lines.append(f"[{number}] Action: {response}")
    turn = _spark_turn(goal=goal, observation=observation, admissible=admissible)
    past = "\n".join(lines)
    return f"{_SPARK_ROLE}\nTask: {goal}\n\n{past}\n\n{turn}\n\n{_SPARK_RULES}"


PROMPTS: dict[str, Any] = {
    # for models trained from scratch: every token is paid for, and an instruction teaches them nothing
    "compact": PromptSet(opening=_compact_opening, turn=_compact_turn, window=_compact_window),
    # the same with the goal after every observation: a small model need not look back for what it wants
    "goal_last": PromptSet(opening=_goal_last, turn=_goal_last, window=_goal_last_window),
    # for instruction-tuned models: the contents of SPARK's prompt in words of our own
    "spark": PromptSet(opening=_spark_opening, turn=_spark_turn, window=_spark_window),
    # calls alone, without tags: the form that ToolExpander and other tool-calling papers train
    "tool_calls": "firesteel.environments.tool_calls.prompts:TOOL_CALLS",
    # the model's own chat template with `tools=`; chosen by `environment.options.format=template`
    "tool_template": "firesteel.environments.tool_calls.template:TOOL_TEMPLATE",
    # `tool_calls` with a reasoning tag in front, so that an episode can branch at `<explore>`
    "tool_calls_explore": "firesteel.environments.tool_calls.prompts:TOOL_CALLS_EXPLORE",
}
