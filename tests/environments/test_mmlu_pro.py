"""MMLU-Pro's schema: rows that are right, rows that are wrong, splits, duplicates, prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from firesteel.environments.mmlu_pro import MmluPro, cot_prompt, load_mmlu_pro, load_shots, split_of, tool_prompt
from firesteel.environments.question_rows import (
    load_questions,
    parse_action,
    question_of,
    read_answer,
    read_letter,
    read_question,
)
from firesteel.errors import MissingDependency, TaskError
from firesteel.tools import make_tools


def record(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "question_id": number, "question": f" What is {number} plus 1?",
        "options": [str(number), str(number + 1), "N/A"], "answer": "B", "answer_index": 1,
        "category": "math", "src": "made", "cot_content": "A: Let's see. It is more.",
    }  # fmt: skip
    return row | changes


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_a_row_becomes_a_question() -> None:
    question = read_question(record(7), "row")
    assert (question.question_id, question.question, question.options) == ("7", "What is 7 plus 1?", ("7", "8"))
    assert (question.answer, question.answer_index, question.category, question.src) == ("B", 1, "math", "made")
    assert question_of(question.task("train")) == question


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "C"}, "answer 'C' \\(index 1\\) is none of the options A to B"),
        ({"answer": "A"}, "the answer is 'A', but answer_index 1 is 'B'"),
        ({"answer_index": 5}, "is none of the options A to B"),
        ({"answer": ""}, "answer '' \\(index 1\\) is none of the options"),
        ({"answer": "AB"}, "is none of the options"),
        ({"options": ["1"]}, "wanted 2 to 10 options as text, got 1"),
        ({"options": [str(n) for n in range(11)]}, "got 11"),
        ({"options": [1, 2]}, "options as text"),
        ({"options": "12"}, "wanted 'options' as list, got '12'"),
        ({"question": None}, "wanted 'question' as str, got None"),
        ({"question": "  "}, "the question has no id or no text"),
        ({"category": 3}, "wanted 'category' as str"),
    ],
)
def test_a_bad_row_is_named_by_its_id(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=rf"row 3 \(question_id 9\): .*{message}"):
        read_question(record(9, **changes), "row 3")


def test_bad_rows_of_a_file_are_reported_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [record(1), record(2, answer="A"), "{broken", record(1), "[]", record(3)])
    questions, problems = load_questions(path)
    assert [question.question_id for question in questions] == ["1", "3"]
    for problem, part in zip(problems, ("question_id 2", "row 3", "question_id '1' was there", "row 5"), strict=True):
        assert part in problem


def test_who_plays_a_file_with_bad_rows_is_told_which(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [record(1), *(record(number, answer="J") for number in range(2, 7))])
    with pytest.warns(RuntimeWarning, match="5 left out as no questions: .*question_id 2.*question_id 4.*and 2 more$"):
        assert [task.id for task in MmluPro.tasks("all", path=path)] == ["1"]


def test_files_without_a_question_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not exist; wanted a JSONL file of MMLU-Pro's schema"):
        load_questions(tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match="holds no question; it is empty"):
        load_questions(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(TaskError, match="holds no question; .*wanted 'question' as str"):
        load_questions(write(tmp_path / "other.jsonl", [{"prompt": "x"}]))


def test_equal_questions_are_kept_once_whatever_the_order_of_their_options(tmp_path: Path) -> None:
    twin = record(2, question=record(1)["question"], options=["2", "1"], answer="A", answer_index=0)
    with pytest.warns(RuntimeWarning, match="1 left out as asked twice: question_id '2' repeats question_id '1'$"):
        questions, problems = load_mmlu_pro(write(tmp_path / "q.jsonl", [record(1), twin, record(3)]))
    assert [question.question_id for question in questions] == ["1", "3"]
    assert problems == ("question_id '2' repeats question_id '1'",)


def test_splits_are_disjoint_stable_and_of_their_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [record(number) for number in range(2000)])
    ids = {
        name: {task.id for task in MmluPro.tasks(name, path=path)} for name in ("train", "validation", "test", "all")
    }
    assert len(ids["all"]) == 2000 == len(ids["train"] | ids["validation"] | ids["test"])
    # 25% of 2000: standard deviation 19; 5%: 10
    assert abs(len(ids["train"]) - 500) < 80 and abs(len(ids["validation"]) - 100) < 40
    assert split_of(read_question(record(5), "")) == split_of(read_question(record(5, question_id=77), ""))
    first = [task.id for task in MmluPro.tasks("train", path=path, count=20)]
    assert first == [task.id for task in MmluPro.tasks("train", path=path, count=20)]
    assert first != [task.id for task in MmluPro.tasks("train", path=path, count=20, seed=1)]


def test_unknown_splits_and_categories_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [record(1)])
    with pytest.raises(TaskError, match="no split 'dev'; it has train, validation, test, all"):
        MmluPro.tasks("dev", path=path)
    with pytest.raises(TaskError, match="no category 'maths'; it has math"):
        MmluPro.tasks("all", path=path, categories=["maths"])


def test_without_the_package_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match="pip install datasets; or give a JSONL file by the option 'path'"):
        load_mmlu_pro.__wrapped__(None)


def test_an_episode_asks_and_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [record(1)])
    environment = MmluPro(tools=["calculator"], path=path)
    (task,) = MmluPro.tasks("all", path=path)
    assert environment.reset(task, seed=0).text == "What is 1 plus 1?\nA. 1\nB. 2"
    assert environment.step("answer: C").info["valid"] is False
    assert environment.step("answer: B").reward == 1.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b).", "B"),
        (" c ", "C"),
        ("D", None),
        ("K", None),
        ("", None),
        ("the answer is B", None),
        ("2", None),
    ],
)
def test_letters_beyond_the_options_are_none(text: str, letter: str | None) -> None:
    assert read_letter(text, 3) == letter


def test_an_answer_is_a_letter_or_the_words_of_one_option() -> None:
    options = ["12", " a red hat ", "B", "7", "7"]
    read = [read_answer(text, options) for text in ("12", "a red hat", "B", "c", "7", "13", "")]
    assert read == ["A", "B", "B", "C", None, None, None]  # "B" is a letter before it is a word; 7 is not one option


def test_actions_are_read() -> None:
    assert parse_action("search: a: b\nc") == ("search", "a: b\nc")
    assert parse_action("no action") == ("", "no action")


def test_prompts(tmp_path: Path) -> None:
    shots = load_shots(write(tmp_path / "v.jsonl", [record(number) for number in range(8)]))
    question = read_question(record(50), "")
    text = cot_prompt(question, shots["math"])
    assert text.count("Question: ") == 6 and text.count("It is more. The answer is (B).") == 5
    assert text.endswith("Question: What is 50 plus 1?\nA. 50\nB. 51\nReasoning:")
    text = tool_prompt(question, make_tools(["dates"]))
    assert "\ndates: Answers" in text and "(A to B)" in text and text.endswith("What is 50 plus 1?\nA. 50\nB. 51")


def test_shots_need_worked_examples(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no worked example: no row has a text under 'cot_content'"):
        load_shots(write(tmp_path / "v.jsonl", [record(1, cot_content="")]))
