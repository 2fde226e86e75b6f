"""Multiple-choice questions in MMLU-Pro's schema: reading and showing them, and reading what answers them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from firesteel.errors import TaskError
from firesteel.types import Task

LETTERS = "ABCDEFGHIJ"
ANSWER = "answer"
GOAL = "Answer the question with one of its options; use the tools."

_ACTION = re.compile(r"\s*([A-Za-z_]\w*)\s*:\s*(.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `answer` is the letter of the right option, `answer_index` its place from 0.

    `parameters` is what a generated question was made from; hub rows have none.
    """

    question_id: str
    question: str
    options: tuple[str, ...]
    answer: str
    answer_index: int
    category: str
    src: str = ""
    cot_content: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record of MMLU-Pro's schema."""
        return {**asdict(self), "options": list(self.options), "parameters": dict(self.parameters)}

    def task(self, split: str) -> Task:
        """The question as a task; its kind is its category."""
        return Task(id=self.question_id, kind=self.category, split=split, data=self.to_dict())


def read_question(record: Mapping[str, Any], name: str) -> Question:
    """A question from a record of MMLU-Pro's schema; options "N/A" are fill-ins of that data set and dropped.

    Raises:
        TaskError: a field is missing or of another type, or the answer is no option, or letter and index disagree; the
            message names the row.
    """
    name = f"{name} (question_id {record.get('question_id')!r})"
    kinds = {"question": str, "options": list, "answer": str, "answer_index": int, "category": str}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise TaskError(f"{name}: wanted '{key}' as {kind.__name__}, got {record.get(key)!r:.60}")
    options = [option for option in record["options"] if option != "N/A"]
    if not all(isinstance(option, str) for option in options) or not 2 <= len(options) <= len(LETTERS):
        raise TaskError(f"{name}: wanted 2 to {len(LETTERS)} options as text, got {len(options)}")
    index, letter = record["answer_index"], record["answer"].strip().upper()
    known = LETTERS[: len(options)]
    if letter not in known or len(letter) != 1 or not 0 <= index < len(options):
        raise TaskError(f"{name}: answer '{letter}' (index {index}) is none of the options {known[0]} to {known[-1]}")
    if known[index] != letter:
        raise TaskError(f"{name}: the answer is '{letter}', but answer_index {index} is '{known[index]}'")
    if record.get("question_id") is None or not record["question"].strip():
        raise TaskError(f"{name}: the question has no id or no text")
    return Question(
        str(record["question_id"]), record["question"].strip(), tuple(options), letter, index, record["category"],
        str(record.get("src") or ""), str(record.get("cot_content") or ""), dict(record.get("parameters") or {}),
    )  # fmt: skip


def question_of(task: Task) -> Question:
    """The question of a task."""
    return read_question(task.data, f"task '{task.id}'")


def load_questions(path: Path | str) -> tuple[list[Question], list[str]]:
    """The questions of a JSONL file, and one line of text for each row that is none.

    Raises:
        TaskError: the file is missing, or no row of it is a question.
    """
    path = Path(path)
    if not path.is_file():
        raise TaskError(f"'{path}' does not exist; wanted a JSONL file of MMLU-Pro's schema")
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    questions, problems = sort_out(
        (_parse(line, number, path) for number, line in enumerate(lines, start=1)), str(path)
    )
    if not questions:
        raise TaskError(f"'{path}' holds no question; {problems[0] if problems else 'it is empty'}")
    return questions, problems


def sort_out(records: Iterable[Mapping[str, Any] | TaskError], name: str) -> tuple[list[Question], list[str]]:
    """The questions among some records, and what is wrong with the others; a second row of an id is wrong, too."""
    questions: dict[str, Question] = {}
    problems: list[str] = []
    for number, record in enumerate(records, start=1):
        try:
            if isinstance(record, TaskError):
                raise record
            question = read_question(record, f"'{name}', row {number}")
            if question.question_id in questions:
                raise TaskError(f"'{name}', row {number}: question_id {question.question_id!r} was there before")
            questions[question.question_id] = question
        except TaskError as error:
            problems.append(str(error))
    return list(questions.values()), problems


def _parse(line: str, number: int, path: Path) -> Mapping[str, Any] | TaskError:
    try:
        record = json.loads(line)
    except ValueError:
        return TaskError(f"'{path}', row {number}: wanted a JSON object, got {line[:40]!r}")
    return record if isinstance(record, dict) else TaskError(f"'{path}', row {number}: wanted a JSON object")


def format_question(question: Question) -> str:
    """The question and its options, one a line, each after its letter."""
    options = [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
    return "\n".join([question.question, *options])


def parse_action(text: str) -> tuple[str, str]:
    """The name and the text of an action of the form `name: text`; the name is "" where there is none."""
    match = _ACTION.fullmatch(text)
    return (match[1].lower(), match[2].strip()) if match else ("", text.strip())


def read_letter(text: str, num_options: int) -> str | None:
    """The option that an answer names, such as "C" or "(c)."; None for any other text or a letter beyond them."""
    match = _LETTER.fullmatch(text.strip())
    letter = match[1].upper() if match else ""
    return letter if letter and letter in LETTERS[:num_options] else None


def read_answer(text: str, options: Sequence[str]) -> str | None:
    """The letter of an answer: a letter, or an option's own words (which a small model copies more easily)."""
    letter = read_letter(text, len(options))
    if letter is None and text.strip():
        same = [known for known, option in zip(LETTERS, options, strict=False) if option.strip() == text.strip()]
        letter = same[0] if len(same) == 1 else None
    return letter
