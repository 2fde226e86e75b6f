"""The environment `mmlu_pro`: MMLU-Pro's questions, from the Hub or from a JSONL file of the same schema.

The paper trains on questions of the published test set and does not say which. Here a question's own text decides:
25% train, 5% validation, 70% test. Equal questions fall into the same part, and of equal ones the first is kept.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from firesteel.environments.question_rows import LETTERS, Question, format_question, load_questions, sort_out
from firesteel.environments.questions import QuestionEnvironment, chosen_categories
from firesteel.errors import MissingDependency, TaskError
from firesteel.tools import COT, Tool
from firesteel.types import Task

HUB_NAME = "TIGER-Lab/MMLU-Pro"
CATEGORIES = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law",
    "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip
SPLIT_BOUNDS = {"train": (0, 25), "validation": (25, 30), "test": (30, 100)}
NUM_SHOTS = 5
NUM_TOLD = 3


class MmluPro(QuestionEnvironment):
    """MMLU-Pro. `path` names a JSONL file; without it the Hub's data set is loaded (package `datasets`)."""

    task_options = ("categories", "path")

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """Questions of a split in an order that `seed` decides; split "all" has every one.

        Options: `path` of a JSONL file, and `categories`.

        Raises:
            TaskError: an unknown split or category, or nothing to load.
        """
        if split not in (*SPLIT_BOUNDS, "all"):
            raise TaskError(f"mmlu_pro has no split '{split}'; it has {', '.join([*SPLIT_BOUNDS, 'all'])}")
        cls.check_options(options)
        path, categories = options.get("path"), chosen_categories(options)
        questions, _ = load_mmlu_pro(None if path is None else str(path))
        there = sorted({question.category for question in questions})
        wrong = sorted(set(categories or ()) - set(there))
        if wrong:
            raise TaskError(f"mmlu_pro has no category '{wrong[0]}'; it has {', '.join(there)}")
        chosen = [
            question
            for question in questions
            if split in ("all", split_of(question)) and (categories is None or question.category in categories)
        ]
        random.Random(f"mmlu_pro/{seed}").shuffle(chosen)
        return [question.task(split) for question in chosen[:count]]


def split_of(question: Question) -> str:
    """The split that a question belongs to; its text and options decide."""
    text = "\0".join((question.question, *sorted(question.options)))
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 100
    return next(name for name, (low, high) in SPLIT_BOUNDS.items() if low <= place < high)


@lru_cache(maxsize=4)
def load_mmlu_pro(path: str | None = None) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """The questions, equal ones once, and one line of text for each row that was left out, with its id.

    A warning says how many those are, and names the first of them.

    Raises:
        TaskError: the file is missing or holds no question.
        MissingDependency: no path is given, and the package `datasets` is not installed.
    """
    questions, problems = load_questions(path) if path is not None else sort_out(_hub_rows("test"), HUB_NAME)
    repeated: list[str] = []
    first: dict[tuple[object, ...], Question] = {}
    for question in questions:
        key = (question.question, tuple(sorted(question.options)))
        if key in first:
            repeated.append(f"question_id {question.question_id!r} repeats question_id {first[key].question_id!r}")
        else:
            first[key] = question
    told = [_left_out("no questions", problems), _left_out("asked twice", repeated)]
    if any(told):
        warnings.warn(f"mmlu_pro, '{path or HUB_NAME}': {'; '.join(filter(None, told))}", RuntimeWarning, stacklevel=2)
    return tuple(first.values()), (*problems, *repeated)


def _left_out(what: str, problems: Sequence[str]) -> str:
    """How many rows were left out, and which; "" for none."""
    if not problems:
        return ""
    more = f", and {len(problems) - NUM_TOLD} more" if len(problems) > NUM_TOLD else ""
    return f"{len(problems)} left out as {what}: {'; '.join(problems[:NUM_TOLD])}{more}"


def load_shots(path: str | None = None) -> dict[str, list[Question]]:
    """Worked examples by category: the Hub's validation rows, or a JSONL file whose rows have a `cot_content`."""
    questions, _ = load_questions(path) if path is not None else sort_out(_hub_rows("validation"), HUB_NAME)
    shots: dict[str, list[Question]] = {}
    for question in questions:
        if question.cot_content:
            shots.setdefault(question.category, []).append(question)
    if not shots:
        raise TaskError(f"'{path or HUB_NAME}' has no worked example: no row has a text under 'cot_content'")
    return shots


def _hub_rows(split: str) -> Sequence[Mapping[str, Any]]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "mmlu_pro loads from the Hub by the package 'datasets': pip install datasets; or give a JSONL file by the "
            "option 'path'"
        ) from error
    rows: Sequence[Mapping[str, Any]] = datasets.load_dataset(HUB_NAME, split=split)
    return rows


def cot_prompt(question: Question, shots: Sequence[Question]) -> str:
    """The prompt that asks for reasoning and a letter after up to `NUM_SHOTS` worked examples of the category."""
    parts = [
        f"Questions on {question.category}, each with several options of which one is right. Reason step by step, then "
        'end with "The answer is (X)." where X is the letter of the option.'
    ]
    for shot in shots[:NUM_SHOTS]:
        reasoning = shot.cot_content.removeprefix("A:").strip()
        closing = "" if "answer is (" in reasoning else f" The answer is ({shot.answer})."
        parts.append(f"Question: {format_question(shot)}\nReasoning: {reasoning}{closing}")
    parts.append(f"Question: {format_question(question)}\nReasoning:")
    return "\n\n".join(parts)


def tool_prompt(question: Question, tools: Mapping[str, Tool]) -> str:
    """The prompt that asks for one action: a tool with its query, reasoning, or the answer."""
    listed = "\n".join(
        f"{action}: {tool.description}. Example: {action}: {tool.example}" for action, tool in tools.items()
    )
    letters = f"{LETTERS[0]} to {LETTERS[len(question.options) - 1]}"
    return (
        "Answer the question by the letter of one option. In each turn write one short thought, and then one action on "
        f"a line of its own, as 'name: text'. The actions:\n{listed}\n{COT}: reason in words\nanswer: the letter "
        f"({letters}), which ends the work\n\n{format_question(question)}"
    )
