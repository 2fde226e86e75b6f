"""The wording of tool-calling prompts, and the response form that the tool-calling papers train: calls alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from firesteel.environments.tool_calls.formats import CallFormat, show_tools
from firesteel.environments.tool_calls.tasks import Demonstration, ToolTask, calls_made
from firesteel.prompts import Pair, PromptSet
from firesteel.responses import ParsedResponse, parse_response
from firesteel.types import ExpertStep


def show_task(
    task: ToolTask,
    call_format: CallFormat,
    *,
    schemas: str = "json",
    demonstrations: Sequence[Demonstration] = (),
    hint: str = "",
    instruction: str = "",
    is_terse: bool = False,
) -> str:
    """Everything a prompt shows but the query itself: tools, how to call them, solved queries, a hint, the past.

    `instruction` is added to the format's rule; `is_terse` leaves the rule out, for small models trained from scratch.
    """
    lines = ["Tools:" if task.tools else "There are no tools.", show_tools(task.tools, schemas)]
    if not is_terse:
        lines.append(call_format.rule)
    lines += [instruction] if instruction else []
    for shown in demonstrations:
        lines += [f"Example: {shown.query}", call_format.write(shown.calls)]
    lines += [hint] if hint else []
    lines += [f"{message['role']}: {_said(message)}" for message in task.past]
    return "\n".join(line for line in lines if line)


def _said(message: Mapping[str, Any]) -> str:
    """A message's text, and the calls that it made as JSON, whatever the format: not every format can write them."""
    calls = [json.dumps([call.to_dict() for call in calls_made(message)], ensure_ascii=False)] * ("calls" in message)
    return "\n".join(filter(None, [str(message["content"]), *calls]))


def _opening(*, goal: str, observation: str, admissible: Sequence[str] | None) -> str:
    del admissible
    return f"{observation}\nQuery: {goal}"


def _turn(*, goal: str, observation: str, admissible: Sequence[str] | None) -> str:
    del goal
    del admissible
    return observation


def _window(
    *, goal: str, num_steps: int, history: Sequence[Pair], observation: str, admissible: Sequence[str] | None
) -> str:
    if num_steps == 0:
        return _opening(goal=goal, observation=observation, admissible=admissible)
    past = "".join(f"{seen}\n> {response}\n" for seen, response in history)
    return f"Query: {goal}\n[{num_steps}]\n{past}{observation}"


def read_whole_response(text: str) -> ParsedResponse:
    """Takes the whole text as the action: no tags are asked for, and no text is invalid but an empty one.

    `explore` is still True where a complete `<explore>` section stands in it, so that branching can look at it.
    """
    tagged = parse_response(text)
    action = text.strip()
    problem = None if action else "empty response"
    return ParsedResponse(action or None, tagged.reasoning, tagged.tag, tagged.explore, problem is None, problem)


def write_whole_response(step: ExpertStep) -> str:
    """The response that supervised fine-tuning teaches where no tags are asked for: the action alone."""
    return step.action


TOOL_CALLS = PromptSet(
    opening=_opening, turn=_turn, window=_window, parse=read_whole_response, write=write_whole_response
)
"""Tools first and the query last, as chat templates with `tools=` write them."""


_EXPLORE_RULE = (
    "Begin with one short sentence: in <explore></explore> when you lack information or the last result surprised you, "
    "in <think></think> when the next call is clear."
)


def _explore_opening(*, goal: str, observation: str, admissible: Sequence[str] | None) -> str:
    return _opening(goal=goal, observation=f"{observation}\n{_EXPLORE_RULE}", admissible=admissible)


def write_tagged_response(step: ExpertStep) -> str:
    """The expert's reason under its tag, then the calls, without an action tag."""
    tag = "explore" if step.explore else "think"
    return f"<{tag}>{step.reason}</{tag}>{step.action}"


TOOL_CALLS_EXPLORE = PromptSet(
    opening=_explore_opening, turn=_turn, window=_window, parse=read_whole_response, write=write_tagged_response
)
"""`TOOL_CALLS` with SPARK's two tags in front of the calls; environments that read calls pass over the tags."""
