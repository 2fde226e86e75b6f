"""The environment `tool_questions`: generated multiple-choice questions that tools can answer, and memory cannot.

Splits "train", "validation" and "test" share twelve categories, and no seed, town or word; "held_out" has two further
categories. Answers are computed by the libraries of the tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from firesteel.environments.questions import QuestionEnvironment, chosen_categories
from firesteel.environments.tool_questions.almanac import corpus, glossary
from firesteel.environments.tool_questions.generate import CATEGORIES, HELD_OUT, SPLITS, make_question
from firesteel.errors import TaskError
from firesteel.tools import tool_names
from firesteel.types import Task

DEFAULT_COUNTS = {"train": 2000, "validation": 240, "test": 480, "held_out": 240}

__all__ = ["CATEGORIES", "DEFAULT_COUNTS", "HELD_OUT", "ToolQuestions"]


class ToolQuestions(QuestionEnvironment):
    """Generated questions; `search` and `dictionary` hold the almanac that some of them ask about."""

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """Questions of a split, category after category in turn. `seed` moves the numbers inside the split's range.

        The option `categories` takes some of the split's categories instead of all.

        Raises:
            TaskError: an unknown split or category, or one that the split does not have.
        """
        if split not in DEFAULT_COUNTS:
            raise TaskError(f"tool_questions has no split '{split}'; it has {', '.join(DEFAULT_COUNTS)}")
        there = HELD_OUT if split == "held_out" else tuple(name for name in CATEGORIES if name not in HELD_OUT)
        cls.check_options(options)
        chosen = chosen_categories(options) or there
        wrong = [name for name in chosen if name not in there]
        if wrong:
            raise TaskError(f"split '{split}' has no category '{wrong[0]}'; it has {', '.join(there)}")
        base = "test" if split == "held_out" else split
        start = SPLITS[base] + (seed % 50) * 20_000
        number = DEFAULT_COUNTS[split] if count is None else count
        return [
            make_question(chosen[index % len(chosen)], base, start + index // len(chosen)).task(split)
            for index in range(number)
        ]

    @classmethod
    def default_tool_options(cls, tools: Any) -> dict[str, Any]:
        own: dict[str, dict[str, Any]] = {"search": {"corpus": corpus()}, "dictionary": {"glossary": glossary()}}
        return {action: dict(own[name]) for action, name in tool_names(tools).items() if name in own}
