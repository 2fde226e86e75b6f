"""The `<examples>` section of ToolExpander's self-exemplifying thinking: asking for it, reading it, writing it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firesteel.environments.tool_calls.parsers import LONGEST_TEXT, Unreadable, load_json
from firesteel.environments.tool_calls.tasks import Demonstration, canonical
from firesteel.responses import sections

FEWEST_EXAMPLES = 4
"""The paper asks for more than 3."""

INSTRUCTIONS = {
    "full": (
        "Before you answer, make up at least four different solved examples for these tools, inside "
        "<examples></examples>, as a JSON list of objects with the keys tool, question and answer. They must not "
        "repeat the query. Then reason in <think></think>. Then write the calls."
    ),
    "terse": "examples first",
}
"""Our wording; the paper's prompt is not published."""

_KEYS = ("tool", "question", "answer")
_SEPARATORS = re.compile(r"\}\s*(?:,\s*)?\{")


@dataclass(frozen=True, slots=True)
class Examples:
    """What a response exemplifies. `distinct` holds each different example once; `problem` is None if all are well."""

    distinct: tuple[dict[str, Any], ...] = ()
    count: int = 0
    problem: str | None = None

    @property
    def is_enough(self) -> bool:
        """The paper's FewshotsCorrect: every example can be parsed, and more than 3 are different."""
        return self.problem is None and len(self.distinct) >= FEWEST_EXAMPLES


def read_examples(text: str) -> Examples:
    """Reads the one `<examples>` section, a JSON list of objects or objects one after the other.

    Each must have a tool and a question, texts that are not empty, and an answer. Examples are the same when these
    three are equal. Only whitespace may stand before the section: calls look different in every format, and examples
    after the answer show nothing about how it was found. Nothing else about the content is checked. Differs from the
    paper: it does not say what makes examples distinct.
    """
    if len(text) > LONGEST_TEXT:
        return Examples(problem="the response is too long")
    found = list(sections(text, "examples"))
    if len(found) != 1:
        return Examples(problem=f"{len(found)} <examples> sections instead of one")
    if text[: found[0].start].strip():
        return Examples(problem="the examples do not come first: there is text before <examples>")
    try:
        items = _items(found[0].body.strip())
    except Unreadable as error:
        return Examples(problem=str(error))
    for item in items:
        if (problem := _flaw(item)) is not None:
            return Examples(count=len(items), problem=problem)
    distinct = {canonical([item[key] for key in _KEYS]): item for item in items}
    return Examples(tuple(distinct.values()), len(items))


def _items(body: str) -> list[Any]:
    if not body.startswith("["):
        body = f"[{_SEPARATORS.sub('},{', body)}]"
    items = load_json(body)
    assert isinstance(items, list)
    return items


def _flaw(item: Any) -> str | None:
    if not isinstance(item, dict):
        return "an example is not an object"
    if any(not isinstance(item.get(key), str) or not item[key].strip() for key in ("tool", "question")):
        return "an example lacks a tool or a question"
    return None if item.get("answer") not in (None, "", {}, []) else "an example lacks an answer"


def write_examples(examples: Sequence[Demonstration]) -> str:
    """The section that `read_examples` reads; the answer of several calls is a list."""
    items = [
        {
            "tool": shown.calls[0].name,
            "question": shown.query,
            "answer": shown.calls[0].to_dict() if len(shown.calls) == 1 else [call.to_dict() for call in shown.calls],
        }
        for shown in examples
    ]
    return f"<examples>{json.dumps(items, ensure_ascii=False)}</examples>"


def write_self_exemplifying(answer: str, examples: Sequence[Demonstration], thought: str) -> str:
    """A whole response: examples, a thought, the calls."""
    return f"{write_examples(examples)}<think>{thought}</think>{answer}"
