"""The generated questions are no toy: their text gives nothing away, no single tool is enough, tools name no letter."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from firesteel.environments.check import check_environment
from firesteel.environments.question_rows import Question, question_of
from firesteel.environments.tool_questions import CATEGORIES, HELD_OUT, ToolQuestions
from firesteel.environments.tool_questions.almanac import corpus, glossary, towns, words
from firesteel.environments.tool_questions.generate import number_options, significant_options
from firesteel.environments.tool_questions.queries import SLIPS, slip, write_query
from firesteel.errors import ConfigError, MissingDependency, TaskError
from firesteel.judges.matching import match_option
from firesteel.tools import Tool
from firesteel.tools.sandbox import Sandbox

NUM_PLAYED = 168


def questions(split: str, count: int) -> list[Question]:
    return [question_of(task) for task in ToolQuestions.tasks(split, count=count)]


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, Tool]]:
    """All eight tools; Python without the sandbox where bubblewrap does not work: the queries are our own."""
    try:
        sandbox = Sandbox(workers=1)
        sandbox.warm_up()
        rung = "bubblewrap"
        sandbox.close()
    except MissingDependency:
        rung = "limits_only"
    environment = ToolQuestions(tool_options={"python": {"rung": rung, "workers": 1}})
    yield environment.tools
    for tool in environment.tools.values():
        tool.close()


@pytest.fixture(scope="module")
def outputs(tools: dict[str, Tool]) -> list[tuple[Question, dict[str, str]]]:
    """What every tool answers to its query about some questions of all categories; Physics gets its second step."""
    played = []
    for question in [*questions("train", NUM_PLAYED - 28), *questions("held_out", 28)]:
        rng = random.Random(question.question_id)
        first = {name: tools[name].call(write_query(question, name, rng)).text for name in tools}
        if question.category == "physics":
            for name in ("calculator", "python"):
                first[name] = tools[name].call(write_query(question, name, rng, seen=[first["reference"]])).text
        played.append((question, first))
    return played


# The three claims


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d", text.lower())


def option_features(question: Question) -> np.ndarray:
    """(options, features): what a classifier may find in an option's text: rank, length, digits, shared words."""
    rows = []
    numbers = [float(option) if re.fullmatch(r"-?\d[\d.e+-]*", option) else 0.0 for option in question.options]
    order = np.argsort(np.argsort(numbers))
    lengths = [len(option) for option in question.options]
    asked = set(words_of(question.question))
    for index, option in enumerate(question.options):
        rank = order[index] / max(1, len(numbers) - 1)
        digits = Counter(re.findall(r"\d", option))
        last = int(option[-1]) if option[-1].isdigit() else 0
        rows.append(
            [
                index / 10, rank, (rank - 0.5) ** 2, lengths[index] - np.mean(lengths), last / 10, float(last == 0),
                float(last == 5), digits["0"] / 5, len(asked & set(words_of(option))), float("-" in option),
                len(set(option)) / 10,
            ]
        )  # fmt: skip
    return np.array(rows, dtype=float)


def fit_and_score(train: Sequence[Question], test: Sequence[Question]) -> float:
    """Accuracy of a softmax over options with linear scores, fitted by gradient descent."""
    features = [option_features(question) for question in train]
    scale = np.concatenate(features).std(axis=0) + 1e-9
    weights = np.zeros(features[0].shape[1])
    for _ in range(100):
        gradient = np.zeros_like(weights)
        for question, values in zip(train, features, strict=True):
            scores = values / scale @ weights
            chances = np.exp(scores - scores.max())
            chances /= chances.sum()
            gradient += (values[question.answer_index] - chances @ values) / scale
        weights += 0.5 * gradient / len(train)
    won = [int(np.argmax(option_features(q) / scale @ weights)) == q.answer_index for q in test]
    return float(np.mean(won))


def naive_bayes(train: Sequence[Question], test: Sequence[Question]) -> float:
    """Accuracy of guessing the letter from the words of the question and of all its options."""

    def text(question: Question) -> list[str]:
        places = enumerate(question.options)
        return words_of(question.question) + [
            f"{place}:{word}" for place, option in places for word in words_of(option)
        ]

    counts: dict[str, Counter[str]] = {}
    for question in train:
        counts.setdefault(question.answer, Counter()).update(text(question))
    vocabulary = len({word for counter in counts.values() for word in counter})
    prior = Counter(question.answer for question in train)

    def best(question: Question) -> str:
        def score(letter: str) -> float:
            total = sum(counts[letter].values()) + vocabulary
            return np.log(prior[letter]) + sum(np.log((counts[letter][word] + 1) / total) for word in text(question))

        return max(counts, key=score)

    return float(np.mean([best(question) == question.answer for question in test]))


def test_a_classifier_on_the_text_alone_stays_within_five_points_of_chance() -> None:
    train, test = questions("train", 1200), questions("test", 960)
    chance = float(np.mean([1 / len(question.options) for question in test]))
    assert 0.1 <= chance < 0.12
    assert fit_and_score(train, test) < chance + 0.05
    assert naive_bayes(train, test) < chance + 0.05


def test_the_classifier_would_see_a_giveaway() -> None:
    # The same questions, with every wrong option one character longer.
    def marked(question: Question) -> Question:
        options = [o if i == question.answer_index else o + "7" for i, o in enumerate(question.options)]
        return Question(question.question_id, question.question, tuple(options), question.answer,
                        question.answer_index, question.category)  # fmt: skip

    train, test = ([marked(question) for question in questions(split, 300)] for split in ("train", "test"))
    assert fit_and_score(train, test) > 0.5


def test_the_best_single_tool_is_far_below_the_best_choice(
    outputs: list[tuple[Question, dict[str, str]]],
) -> None:
    """A tool that names no option leaves a guess."""
    worth: dict[str, list[float]] = {}
    best = []
    for question, texts in outputs:
        won = {}
        for name, text in texts.items():
            match = match_option(text, question.options)
            won[name] = 1 / len(question.options) if match is None else float(match == question.answer_index)
            worth.setdefault(name, []).append(won[name])
        best.append(max(won.values()))
    single = max(float(np.mean(values)) for values in worth.values())
    assert float(np.mean(best)) > 0.85
    assert single <= float(np.mean(best)) - 0.15


def test_many_questions_have_several_tools_and_they_differ_in_reliability(
    outputs: list[tuple[Question, dict[str, str]]],
) -> None:
    right = [
        {name for name, text in texts.items() if match_option(text, question.options) == question.answer_index}
        for question, texts in outputs
    ]
    assert np.mean([len(names) >= 2 for names in right]) > 0.35
    wrong = [
        any(match_option(text, question.options) not in (None, question.answer_index) for text in texts.values())
        for question, texts in outputs
    ]
    assert np.mean(wrong) > 0.02
    assert len(set(SLIPS.values())) > 1


def test_no_output_holds_a_letter_of_an_option(outputs: list[tuple[Question, dict[str, str]]]) -> None:
    texts = [text for _, found in outputs for text in found.values()] + corpus() + list(glossary().values())
    assert [text[:100] for text in texts if re.search(r"\b[A-J]\b", text)] == []


# The questions


def test_there_are_at_least_ten_categories_and_two_are_held_out() -> None:
    assert len(CATEGORIES) == 14 and len(HELD_OUT) == 2
    trained = {question.category for question in questions("train", 48)}
    assert trained == set(CATEGORIES) - set(HELD_OUT)
    assert {question.category for question in questions("held_out", 8)} == set(HELD_OUT)


def test_splits_share_no_question_and_no_entry() -> None:
    texts = [{question.question for question in questions(split, 600)} for split in ("train", "validation", "test")]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    ids = [{question.question_id for question in questions(split, 600)} for split in ("train", "validation", "test")]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])


def test_a_question_depends_on_its_number_alone() -> None:
    assert questions("train", 30)[:12] == questions("train", 12)
    moved = [question_of(task) for task in ToolQuestions.tasks("train", count=12, seed=1)]
    assert not {question.question_id for question in moved} & {
        question.question_id for question in questions("train", 12)
    }


def test_every_question_has_different_options_and_one_right_one() -> None:
    for question in questions("train", 240) + questions("held_out", 40):
        assert len(set(question.options)) == len(question.options) >= 7
        assert question.options[question.answer_index] in question.options


def test_every_place_is_right_about_equally_often() -> None:
    counts = Counter(question.answer_index for question in questions("train", 1200) if len(question.options) == 10)
    expected = sum(counts.values()) / 10
    # 2.6 to 3.4 standard deviations of a binomial count
    assert all(abs(count - expected) < 35 for count in counts.values())


def test_number_options_put_the_value_at_any_rank() -> None:
    ranks = Counter(number_options(random.Random(seed), 500).index("500") for seed in range(1000))
    assert set(ranks) == set(range(10)) and min(ranks.values()) > 60
    assert all(float(option) > 0 for seed in range(50) for option in significant_options(random.Random(seed), 1e-27))


def test_the_almanac_is_the_same_everywhere() -> None:
    assert (towns()[0].name, words()[0].word) == (towns()[0].name.capitalize(), words()[0].word.lower())
    assert len({town.name for town in towns()}) == len(towns()) and len(glossary()) == len(words()) + len(towns()[::3])


def test_a_slip_changes_one_thing() -> None:
    rng = random.Random(0)
    assert sum(a != b for a, b in zip("12 + 345", slip("12 + 345", rng), strict=True)) == 1
    assert slip("alpha beta", rng) in ("alpha", "beta")
    assert sorted(slip("alpha", random.Random(1))) == sorted("alpha") and slip("alpha", random.Random(1)) != "alpha"


# The environment


def test_bad_splits_and_categories_are_named() -> None:
    with pytest.raises(TaskError, match="no split 'dev'; it has train, validation, test, held_out"):
        ToolQuestions.tasks("dev")
    with pytest.raises(TaskError, match="split 'train' has no category 'time_zones'; it has algebra"):
        ToolQuestions.tasks("train", categories=["time_zones"])


def test_an_episode_runs_tools_and_ends_with_the_answer() -> None:
    environment = ToolQuestions(tools=["calculator"])
    task = ToolQuestions.tasks("train", count=1, categories=["arithmetic"])[0]
    question = question_of(task)
    seen = environment.reset(task, seed=0).text
    assert seen.splitlines()[0] == question.question and f"{question.answer}. " in seen
    assert environment.step("calculator: 2 + 2").observation.text == "4"
    assert environment.step('calculator: {"query": "2 + 3"}').observation.text == "5"
    for bad in ("2 + 2", "search: x", "answer: Z", "answer: K", "cot:"):
        result = environment.step(bad)
        assert not result.terminated and result.info["valid"] is False
    twin = environment.fork()
    wrong = "A" if question.answer != "A" else "B"
    assert twin.step(f"answer: {wrong}").info["success"] is False
    ended = environment.step(f"answer: ({question.answer.lower()})")
    assert ended.terminated and ended.reward == 1.0
    with pytest.raises(TaskError, match="after the answer"):
        environment.step("cot: more")


def test_it_keeps_the_contract_of_environments() -> None:
    actions = ["search: river", "dates: easter 2025", "cot: think", "answer: A", "nonsense", "dictionary: nothing"]
    check_environment(
        lambda: ToolQuestions(tools=["dates", "search", "dictionary"]), actions=actions, episodes=2, steps=5
    )


def test_unknown_options_are_named() -> None:
    with pytest.raises(ConfigError, match="ToolQuestions has no option 'categorys' \\(did you mean 'categories'"):
        ToolQuestions.tasks("train", categorys=["arithmetic"])
    with pytest.raises(ConfigError, match="ToolQuestions has no option 'tool'"):
        ToolQuestions(tool=["dates"])
    with pytest.raises(ConfigError, match="'categories' must be a list of names, got 'arithmetic'"):
        ToolQuestions.tasks("train", categories="arithmetic")
