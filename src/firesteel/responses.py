"""Reading responses of the one form that environments with steps ask for: a reasoning tag, then an action tag."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

REASONING_TAGS = ("explore", "think")


@dataclass(frozen=True, slots=True)
class Section:
    """A complete `<tag>body</tag>` of a text, which is `text[start:end]`."""

    tag: str
    body: str
    start: int
    end: int


def sections(text: str, *tags: str) -> Iterator[Section]:
    """The complete sections with one of these tags, from left to right; none overlaps the one before.

    Equal to the matches of `<(a|b)>(.*?)</\\1>`, but in time linear in the text: that expression looks through all the
    rest of the text at every opening tag without a closing one, and models repeat themselves.
    """
    unclosed: set[str] = set()
    place = 0
    for opening in re.finditer(f"<({'|'.join(map(re.escape, tags))})>", text):
        tag = opening.group(1)
        if opening.start() < place or tag in unclosed:
            continue
        closing = text.find(f"</{tag}>", opening.end())
        if closing < 0:
            unclosed.add(tag)
            continue
        place = closing + len(tag) + 3
        yield Section(tag, text[opening.end() : closing], opening.start(), place)


def text_outside(text: str, *tags: str) -> str:
    """The text without its complete sections with one of these tags."""
    kept: list[str] = []
    place = 0
    for section in sections(text, *tags):
        kept.append(text[place : section.start])
        place = section.end
    return "".join([*kept, text[place:]])


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


_LONGEST_GUESS = 80


def parse_response(text: str) -> ParsedResponse:
    """Reads a response of the form `<explore|think>sentence</...><action>action</action>`.

    Valid iff there is exactly one action tag and exactly one reasoning tag, both complete and with content, the
    reasoning before the action; text around them is allowed (the projection in SPARK's public code). An invalid
    response still acts: with its first complete action tag, else with its last line cut to 80 characters.

    Differs from the paper: the code also calls a response with Chinese characters invalid; that rule is left out,
    so that tasks in any language work.
    """
    action = next(sections(text, "action"), None)
    reasoning = next(sections(text, *REASONING_TAGS), None)
    problem = _problem(text, action, reasoning)
    executed = action.body.strip() if action else ""
    if not executed and text.strip():
        executed = text.strip().splitlines()[-1].strip()[:_LONGEST_GUESS]
    return ParsedResponse(
        action=executed or None,
        reasoning=reasoning.body.strip() if reasoning else "",
        tag=reasoning.tag if reasoning else None,  # type: ignore[arg-type]  # one of REASONING_TAGS
        explore=any(True for _ in sections(text, "explore")),
        valid=problem is None,
        problem=problem,
    )


def _problem(text: str, action: Section | None, reasoning: Section | None) -> str | None:
    """The first rule that a response breaks, or None."""
    num_actions = max(text.count("<action>"), text.count("</action>"))
    num_reasonings = sum(max(text.count(f"<{tag}>"), text.count(f"</{tag}>")) for tag in REASONING_TAGS)
    if action is None:
        return "no complete <action>...</action>"
    if num_actions > 1:
        return f"{num_actions} action tags instead of one"
    if not action.body.strip():
        return "empty <action>"
    if reasoning is None:
        return "no complete <explore>...</explore> or <think>...</think>"
    if num_reasonings > 1:
        return f"{num_reasonings} reasoning tags instead of one"
    if not reasoning.body.strip():
        return f"empty <{reasoning.tag}>"
    if reasoning.end > action.start:
        return "the reasoning does not stand before the action"
    return None
