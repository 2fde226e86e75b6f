"""Self-exemplifying thinking by hand: examples that count, the reward, copied answers, groups of the bonus alone."""

from __future__ import annotations

import json

import pytest
from tool_trees import sample, tool_tree

from firesteel.advantages import estimate_advantages
from firesteel.config import AdvantageConfig
from firesteel.environments.tool_calls import ToolCalls
from firesteel.environments.tool_calls.examples import write_self_exemplifying
from firesteel.environments.tool_calls.formats import FORMATS
from firesteel.environments.tool_calls.tasks import Call, Demonstration
from firesteel.self_exemplifying import (
    bonus_only_share,
    copied_share,
    copies_answer,
    read_examples,
    self_exemplifying_metrics,
    self_exemplifying_reward,
    write_examples,
)

TASK = sample("a", "f", value=1)
ANSWER = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
FOUR = [{"tool": "f", "question": f"q{number}", "answer": {"name": "f", "arguments": {"x": number}}}
        for number in range(2, 6)]  # fmt: skip


def response(items: object, answer: str = ANSWER, thought: str = "<think>so</think>") -> str:
    return f"<examples>{json.dumps(items)}</examples>{thought}{answer}"


def test_more_than_three_distinct_examples_are_enough():
    found = read_examples(response(FOUR))
    assert (found.count, len(found.distinct), found.problem, found.is_enough) == (4, 4, None, True)
    assert not read_examples(response(FOUR[:3])).is_enough
    twice = read_examples(response([*FOUR[:3], FOUR[0]]))
    assert (twice.count, len(twice.distinct), twice.is_enough) == (4, 3, False)


def test_examples_are_the_same_when_tool_question_and_answer_are():
    reordered = {"answer": {"arguments": {"x": 2.0}, "name": "f"}, "question": "q2", "tool": "f"}
    assert len(read_examples(response([*FOUR[:3], reordered])).distinct) == 3
    other_note = FOUR[0] | {"note": "n"}
    assert len(read_examples(response([*FOUR[:3], other_note])).distinct) == 3
    other_question = FOUR[0] | {"question": "again"}
    assert read_examples(response([*FOUR[:3], other_question])).is_enough
    other_answer = FOUR[0] | {"answer": "f(2)"}
    assert read_examples(response([*FOUR[:3], other_answer])).is_enough


def test_objects_may_follow_each_other_without_a_list():
    for separator in (" ", "\n", ", "):
        body = separator.join(map(json.dumps, FOUR))
        assert read_examples(f"<examples>{body}</examples>").is_enough


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ANSWER, "0 <examples> sections"),
        (response(FOUR) + "<examples>[]</examples>", "2 <examples> sections"),
        (f"<think>so</think>{response(FOUR)}", "do not come first"),
        (f"{ANSWER}{response(FOUR, answer='')}", "do not come first"),
        (f"<examples>{FOUR}</examples>", "not JSON"),
        (response([*FOUR, "five"]), "not an object"),
        (response([*FOUR, {"tool": "", "question": "q", "answer": 1}]), "lacks a tool"),
        (response([*FOUR, {"tool": "f", "question": 3, "answer": 1}]), "lacks a tool or a question"),
        (response([*FOUR, {"tool": "f", "question": "q", "answer": ""}]), "lacks an answer"),
        (response([*FOUR, {"tool": "f", "question": "q"}]), "lacks an answer"),
        ("x" * 200_000, "too long"),
    ],
)
def test_one_bad_example_spoils_the_section(text, problem):
    found = read_examples(text)
    assert problem in found.problem
    assert not found.is_enough


@pytest.mark.parametrize("name", FORMATS)
def test_examples_after_the_answer_earn_nothing_in_any_format(name):
    answer = FORMATS[name].write([Call("f", {"x": 1})])
    assert reward_of(response(FOUR, answer=answer), name) == 1.01
    assert reward_of(f"\n {response(FOUR, answer=answer)}", name) == 1.01
    after = f"{answer}{response(FOUR, answer='')}"
    assert "do not come first" in read_examples(after).problem
    assert reward_of(after, name) == 1.0


def reward_of(text: str, call_format: str = "hermes") -> float:
    """Plays the text in the environment and rewards the episode."""
    environment = ToolCalls(exemplify=True, format=call_format)
    environment.reset(TASK, seed=0)
    result = environment.step(text)
    tree = tool_tree(TASK, result.info["success"], text=text)
    return self_exemplifying_reward(tree.episode(tree.leaves[0]))


def test_the_reward_by_hand():
    assert reward_of(response(FOUR)) == 1.01
    assert reward_of(response(FOUR[:3])) == 1.0
    assert reward_of(ANSWER) == 1.0
    assert reward_of(response(FOUR, answer=ANSWER.replace("1", "9"))) == 0.0
    assert reward_of(response(FOUR, answer=f"So {ANSWER}")) == 0.0
    assert reward_of(response(FOUR, answer="")) == 0.0


def test_the_prompt_asks_for_examples():
    environment = ToolCalls(exemplify=True)
    assert "<examples></examples>" in environment.reset(TASK, seed=0).text
    assert "examples" not in ToolCalls().reset(TASK, seed=0).text


def test_what_is_written_is_read():
    shown = [Demonstration(f"q{number}", (Call("f", {"x": number}),)) for number in range(4)]
    assert read_examples(write_self_exemplifying(ANSWER, shown, "so")).is_enough
    both = Demonstration("q", (Call("f", {"x": 7}), Call("g")))
    (example,) = read_examples(write_examples([both])).distinct
    assert example["answer"] == [{"name": "f", "arguments": {"x": 7}}, {"name": "g", "arguments": {}}]


def test_copied_answers_are_seen_in_every_form():
    copy = {"tool": "f", "question": "q", "answer": {"name": "f", "arguments": {"x": 1}}}
    assert copies_answer(response([*FOUR, copy])) is True
    assert copies_answer(response([*FOUR, copy | {"answer": ANSWER}])) is True
    assert copies_answer(response([*FOUR, copy | {"answer": [copy["answer"]]}])) is True
    for answer in ({"x": 1}, '{"x": 1}', "[f(x=1)]", {"name": "f", "parameters": {"x": 1}}, [copy["answer"], 3]):
        assert copies_answer(response([*FOUR, copy | {"answer": answer}])) is True, answer
    positional = response([*FOUR, copy | {"answer": "[f(1)]"}], answer="[f(x=1)]")
    assert copies_answer(positional, "python", TASK.data["tools"]) is True
    assert copies_answer(response([*FOUR, copy | {"tool": "g", "answer": {"x": 1}}])) is False
    assert copies_answer(response([*FOUR, copy | {"answer": 3}])) is False
    assert copies_answer(response(FOUR)) is False
    assert copies_answer(ANSWER) is None
    assert copies_answer(response(FOUR, answer="")) is None


def test_the_bonus_alone_decides_like_solving_does():
    texts_rewards = (1.01, 1.0, 1.0, 1.0, 1.0)
    tree = tool_tree(TASK, *[True] * 5, rewards=texts_rewards, text=response(FOUR))
    solved = tool_tree(sample("b", "f", value=2), True, True, text=ANSWER)
    mixed = tool_tree(sample("c", "f", value=3), True, False, rewards=(1.01, 0.0), text=ANSWER)
    assert bonus_only_share([tree, solved, mixed]) == 1 / 3
    assert bonus_only_share([]) == 0.0
    # mean 1.002, sample variance 4 * 0.002^2 + 0.008^2 over 4 = 2e-5, so 0.008 / sqrt(2e-5) = 1.79
    estimate_advantages([tree], AdvantageConfig(baseline="group_mean", std="sample", eps=0.0))
    assert [leaf.advantages[0] for leaf in tree.leaves] == pytest.approx([1.7889] + [-0.4472] * 4, abs=1e-3)
    estimate_advantages([tree], AdvantageConfig(baseline="group_mean", std="sample", eps=0.0, std_floor=0.4))
    assert tree.leaves[0].advantages == pytest.approx([0.02])


def test_metrics_by_hand():
    copy = [*FOUR, {"tool": "f", "question": "q", "answer": {"name": "f", "arguments": {"x": 1}}}]
    trees = [
        tool_tree(TASK, True, text=response(copy)),
        tool_tree(TASK, True, text=response(FOUR)),
        tool_tree(TASK, True, text=ANSWER),
        tool_tree(TASK, False, text="nothing"),
    ]
    assert copied_share(trees) == 0.5
    assert copied_share(trees[2:]) is None
    metrics = self_exemplifying_metrics(trees)
    assert metrics == {"explore/bonus_only_groups": 0.0, "explore/examples_enough": 0.5, "explore/copied_answers": 0.5}
    assert "explore/copied_answers" not in self_exemplifying_metrics(trees[2:])
