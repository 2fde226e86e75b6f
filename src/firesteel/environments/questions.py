"""Multiple-choice questions in MMLU-Pro's schema, how they are shown, and the environment that asks them."""

from __future__ import annotations

import atexit
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from firesteel.environments.base import Environment
from firesteel.errors import ConfigError, TaskError, ToolFailed
from firesteel.metrics import EpisodeRecord
from firesteel.plugins import nearest
from firesteel.tools import COT, Tool, close_tools, make_tools
from firesteel.tools.base import query_of
from firesteel.types import Observation, StepResult, Task

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


@lru_cache(maxsize=16)
def _shared(names: str, options: str) -> dict[str, Tool]:
    tools = make_tools(json.loads(names), json.loads(options))
    atexit.register(close_tools, tools)
    return tools


def shared_tools(names: str | Sequence[str] | Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Tool]:
    """The tools of some settings, made once in a process: they hold no state, but programs that run."""
    return _shared(json.dumps(names), json.dumps(options, sort_keys=True))


class QuestionEnvironment(Environment):
    """Asks one question. An action is `tool: query`, `cot: thought`, or `answer: letter`, which ends the episode.

    Subclasses give `tasks`. Nothing that the agent sees names the right option.

    Args:
        tools: A preset of `TOOL_PRESETS`, tool names, or action names with the tools behind them.
        tool_options: Constructor arguments of tools, by action name.
    """

    fork_rung = "native"
    is_self_contained = False
    example_actions = ("calculator: 2 + 2", "cot: nothing to work out", "answer: A")
    task_options: ClassVar[tuple[str, ...]] = ("categories",)

    def __init__(
        self,
        tools: str | Sequence[str] | Mapping[str, str] = "offline",
        tool_options: Mapping[str, Any] | None = None,
        **options: object,
    ) -> None:
        """`options` are those of `tasks`; `ConfigError` for any other."""
        self.check_options(options)
        self.tools = shared_tools(tools, {**self.default_tool_options(tools), **(tool_options or {})})
        self.question: Question | None = None
        self.over = True

    @classmethod
    def check_options(cls, options: Mapping[str, object]) -> None:
        """Raises `ConfigError` for an option that neither the constructor nor `tasks` knows."""
        known = ("tools", "tool_options", *cls.task_options)
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"{cls.__name__} has no option '{name}'{nearest(name, known)}; known: {', '.join(known)}"
                )

    @classmethod
    def figures(cls, records: Sequence[EpisodeRecord], **options: Any) -> dict[str, float | None]:
        """How the tools were chosen, and whether they worked.

        The entropy of the choice in nats, overall and by category, coverage, calls an episode; of every action its
        share of the calls, and of every tool the share of its calls that worked.
        """
        from firesteel.tool_evaluation import entropy_of_kinds, tool_report

        names = {name: value for name, value in options.items() if name in ("tools", "tool_options")}
        known = list(cls(**names).tools)
        report = tool_report(records, known)
        kept = ("entropy", "entropy_low", "entropy_high", "coverage", "calls", "ok")
        figures = {name: report[name] for name in kept}
        figures |= {f"entropy/{kind}": value for kind, value in entropy_of_kinds(records, known).items()}
        figures |= {name: value for name, value in report.items() if name.startswith(("rate/", "ok/"))}
        return {f"tools/{name}": value for name, value in figures.items()}

    @classmethod
    def default_tool_options(cls, tools: object) -> dict[str, Any]:
        """Options that the environment's own questions need, for the tools that are there."""
        del tools
        return {}

    def reset(self, task: Task, *, seed: int) -> Observation:
        del seed
        self.question = question_of(task)
        self.over = False
        self.goal = GOAL
        return Observation(format_question(self.question))

    def step(self, action: str) -> StepResult:
        if self.question is None or self.over:
            raise TaskError(f"{type(self).__name__}: step before reset, or after the answer; call reset first")
        name, text = parse_action(action)
        if name == ANSWER:
            letter = read_answer(text, self.question.options)
            if letter is None:
                return _not_understood(f"'{text[:20]}' is no option; answer with one letter")
            self.over = True
            won = letter == self.question.answer
            return StepResult(
                Observation("The question is answered."), float(won), terminated=True,
                info={"success": won, "score": float(won), "valid": True},
            )  # fmt: skip
        if name == COT and text:
            return StepResult(Observation("Go on."), info={"success": False, "score": 0.0, "valid": True})
        if name not in self.tools:
            return _not_understood(
                f"the actions are {', '.join([*self.tools, COT, ANSWER])}, each with ': ' and a text"
            )
        try:
            result = self.tools[name].call(query_of(text))
        except ToolFailed as error:
            return _not_understood(str(error))
        info = {"success": False, "score": 0.0, "valid": True, "tool": name, "tool_ok": result.ok}
        return StepResult(Observation(result.text), info=info)

    def fork(self) -> Environment:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy


def chosen_categories(options: Mapping[str, object]) -> list[str] | None:
    """The option `categories` as a list; None where it is not given."""
    given = options.get("categories")
    if given is None:
        return None
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given) or not given:
        raise ConfigError(f"the option 'categories' must be a list of names, got {given!r}")
    return list(given)


def _not_understood(message: str) -> StepResult:
    return StepResult(Observation(f"not understood: {message}"), info={"success": False, "score": 0.0, "valid": False})
