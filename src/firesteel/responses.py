"""Reading responses of the one form that environments with steps ask for: a reasoning tag, then an action tag."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

REASONING_TAGS = ("explore", "think")


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """What a response says. `problem` is None exactly when `valid`; `action` is None for an empty response.

    `tag` and `reasoning` belong to the first complete reasoning tag. `explore` is True when a complete
    `<explore>...</explore>` stands anywhere, even in an invalid response: that is what branching looks at.
    """

    action: str | None
    reasoning: str
    tag: Literal["explore", "think"] | None
    explore: bool
    valid: bool
    problem: str | None


_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_REASONING = re.compile(r"<(explore|think)>(.*?)</\1>", re.DOTALL)
_EXPLORE = re.compile(r"<explore>.*?</explore>", re.DOTALL)
_LONGEST_GUESS = 80


def parse_response(text: str) -> ParsedResponse:
    """Reads a response of the form `<explore|think>sentence</...><action>action</action>`.

    Valid iff there is exactly one action tag and exactly one reasoning tag, both complete and with content, the
    reasoning before the action; text around them is allowed (the projection in SPARK's public code). An invalid
    response still acts: with its first complete action tag, else with its last line cut to 80 characters.

    Differs from the paper: the code also calls a response with Chinese characters invalid; that rule is left out,
    so that tasks in any language work.
    """
    action = _ACTION.search(text)
    reasoning = _REASONING.search(text)
    problem = _problem(text, action, reasoning)
    executed = action.group(1).strip() if action else ""
    if not executed and text.strip():
        executed = text.strip().splitlines()[-1].strip()[:_LONGEST_GUESS]
    return ParsedResponse(
        action=executed or None,
        reasoning=reasoning.group(2).strip() if reasoning else "",
        tag=reasoning.group(1) if reasoning else None,  # type: ignore[arg-type]  # the pattern allows nothing else
        explore=_EXPLORE.search(text) is not None,
        valid=problem is None,
        problem=problem,
    )


def _problem(text: str, action: re.Match[str] | None, reasoning: re.Match[str] | None) -> str | None:
    """The first rule that a response breaks, or None."""
    num_actions = max(text.count("<action>"), text.count("</action>"))
    num_reasonings = sum(max(text.count(f"<{tag}>"), text.count(f"</{tag}>")) for tag in REASONING_TAGS)
    if action is None:
        return "no complete <action>...</action>"
    if num_actions > 1:
        return f"{num_actions} action tags instead of one"
    if not action.group(1).strip():
        return "empty <action>"
    if reasoning is None:
        return "no complete <explore>...</explore> or <think>...</think>"
    if num_reasonings > 1:
        return f"{num_reasonings} reasoning tags instead of one"
    if not reasoning.group(2).strip():
        return f"empty <{reasoning.group(1)}>"
    if reasoning.end() > action.start():
        return "the reasoning does not stand before the action"
    return None
