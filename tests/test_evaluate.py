"""Evaluation of a small random model on household, and the figures by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from toys import tokenizer
from trees import finish, respond, uneven_tree

from firesteel.config import Config
from firesteel.context import ContextBuilder
from firesteel.errors import TaskError
from firesteel.evaluate import Evaluation, episode_record, evaluate, evaluate_policy, overall_row, pass_rates
from firesteel.generators.torch import TorchGenerator
from firesteel.metrics import success_table, wilson_interval
from firesteel.models import build_tiny_model
from firesteel.policy import Policy, load_tasks
from firesteel.tree import Tree
from firesteel.types import Task


def config(**evaluation: Any) -> Config:
    return Config.build(
        {
            "environment": {"options": {"size": "small", "admissible": False}},
            "context": {"prompts": "compact"},
            "rollout": {"max_turns": 3, "max_response_tokens": 8, "width": 3},
            "evaluation": {"num_tasks": 3, "temperature": 1.0} | evaluation,
        }
    )


@pytest.fixture(scope="module")
def policy() -> Policy:
    model = build_tiny_model(tokenizer(), hidden=32, layers=2, heads=2, kv_heads=1, max_context=1024, seed=1)
    context = ContextBuilder(tokenizer(), "compact")
    return Policy(model, tokenizer(), context, TorchGenerator(model, tokenizer(), end_token_ids=context.stop_token_ids))


# a real evaluation


def test_an_evaluation_plays_every_task_without_branching(policy: Policy) -> None:
    progress: list[tuple[int, int]] = []
    result = evaluate(config(samples=2), policy=policy, on_progress=lambda done, of: progress.append((done, of)))
    assert (result.split, len(result.trees), len(result.records), progress) == ("validation", 3, 6, [(3, 3)])
    assert [len(tree.leaves) for tree in result.trees] == [2] * 3
    assert all(node.width == (2 if node.index == 0 else 1) for tree in result.trees for node in tree.nodes)
    assert result.overall.n == 6 and result.overall.steps == 3.0
    assert {row.kind for row in result.rows} == {"all", *(tree.task.kind for tree in result.trees)}
    assert list(result.pass_at) == [1, 2]
    summary = result.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["success"], summary["low"], summary["n"], summary["failed"]) == (0.0, 0.0, 6, 0)
    assert summary["high"] == wilson_interval(0, 6)[1] and summary["pass_at"] == {"1": 0.0, "2": 0.0}
    tokens = sum(tree.generated_tokens() for tree in result.trees)
    assert summary["generated_tokens"] == pytest.approx(tokens / 6) and "outvoted_tokens" not in summary


def test_evaluation_repeats_itself_and_its_seed_and_split_matter(policy: Policy) -> None:
    def responses(result: Evaluation) -> list[list[int]]:
        return [node.token_ids for tree in result.trees for node in tree.nodes if node.role == "response"]

    first = responses(evaluate(config(), policy=policy))
    assert responses(evaluate(config(), policy=policy)) == first
    assert responses(evaluate(config(seed=1), policy=policy)) != first
    assert {tree.task.split for tree in evaluate(config(), policy=policy, split="l0").trees} == {"l0"}


def test_batches_of_tasks_change_nothing(policy: Policy) -> None:
    settings = config(samples=2)
    tasks = load_tasks(settings, "validation", 3)
    progress: list[tuple[int, int]] = []
    whole = evaluate_policy(policy, settings, tasks, split="validation")
    parts = evaluate_policy(
        policy, settings, tasks, split="validation", batch_tasks=4, on_progress=lambda *counts: progress.append(counts)
    )
    assert progress == [(2, 3), (3, 3)]
    assert parts.records == whole.records and parts.summary() == whole.summary()


def test_a_greedy_evaluation_plays_the_same_episode_twice(policy: Policy) -> None:
    for tree in evaluate(config(temperature=0, samples=2), policy=policy).trees:
        first, second = tree.leaves
        assert tree.stream(first.node) == tree.stream(second.node)


class Exploring(TorchGenerator):
    """The same model, whose responses all begin with a complete explore tag."""

    prefix: tuple[int, ...] = ()

    def generate(self, requests: Sequence[Any]) -> list[Any]:
        completions = super().generate(requests)
        for one in completions:
            one.token_ids[:0] = self.prefix
            for values in (one.logprobs, one.sampling_logprobs, one.entropies):
                values[:0] = [0.0] * len(self.prefix)
        return completions


def test_a_vote_samples_more_and_says_so(policy: Policy) -> None:
    generator = Exploring(policy.model, tokenizer(), end_token_ids=policy.context.stop_token_ids)
    generator.prefix = tuple(tokenizer().encode("<explore>why</explore>", add_special_tokens=False))
    exploring = Policy(policy.model, tokenizer(), policy.context, generator)
    result = evaluate(config(vote=True), policy=exploring)
    # three tasks of three steps: one request for the first step, three (B) for each of the two others
    assert [len(tree.leaves) for tree in result.trees] == [1] * 3
    sampled = result.outvoted_tokens + sum(tree.generated_tokens() for tree in result.trees)
    assert sampled == generator.stats["generated_tokens"] + len(generator.prefix) * 3 * (1 + 3 + 3)
    assert result.summary()["outvoted_tokens"] == result.outvoted_tokens / 3
    assert result.summary()["explore_ratio"] == 1.0
    plain = evaluate(config(), policy=exploring)
    assert plain.outvoted_tokens == 0
    assert [tree.nodes[1].token_ids for tree in plain.trees] == [tree.nodes[1].token_ids for tree in result.trees]


# by hand


def played(outcomes: Sequence[bool | None], name: str = "t", split: str = "s", kind: str = "k") -> Tree:
    """One step an episode; None is an episode whose environment failed."""
    tree = Tree(task=Task(name, kind=kind, split=split), group=name, observation="a room")
    prompt = tree.add(-1, "prompt", 0, [1], restart=True, width=len(outcomes))
    for root, won in enumerate(outcomes):
        leaf = finish(tree, respond(tree, prompt.index, 0, [2, 3]), root, float(bool(won)))
        leaf.score = float(bool(won))
        leaf.status = "failed" if won is None else "finished"
    return tree


def evaluation(trees: list[Tree], samples: int) -> Evaluation:
    records = [episode_record(tree, leaf) for tree in trees for leaf in tree.leaves]
    return Evaluation(
        "s", records, overall_row(records, "s"), success_table(records), pass_rates(trees, samples), trees
    )


def test_pass_at_k_by_hand() -> None:
    # 2 of 4: pass@1 = 1/2, pass@2 = 1 - C(2,2)/C(4,2) = 5/6, pass@4 = 1; 0 of 4: 0
    rates = pass_rates([played([True, False, True, False]), played([False] * 4)], 4)
    assert rates == {1: pytest.approx(0.25), 2: pytest.approx(5 / 12), 4: pytest.approx(0.5)}
    assert list(pass_rates([played([True] * 6)], 6)) == [1, 2, 4, 6]
    assert list(pass_rates([played([True])], 1)) == [1]


def test_failed_episodes_count_in_no_rate() -> None:
    # 1 of 2 that counts; the second task has no two episodes, so it is left out of pass@2
    result = evaluation([played([True, None, False]), played([None, None, True])], 3)
    assert result.pass_at[1] == pytest.approx(0.75) and result.pass_at[2] == 1.0
    summary = result.summary()
    assert (summary["n"], summary["failed"], summary["success"]) == (3, 3, pytest.approx(2 / 3))
    assert summary["pass_at"] == {"1": pytest.approx(0.75), "2": 1.0, "3": None}


def test_a_summary_of_failures_alone_has_no_nan() -> None:
    summary = evaluation([played([None, None])], 2).summary()
    assert (summary["success"], summary["low"], summary["high"], summary["n"]) == (None, 0.0, 1.0, 0)
    assert summary["steps"] is summary["generated_tokens"] is summary["repetition"] is None
    assert summary["pass_at"] == {"1": None, "2": None}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_an_episode_record_by_hand() -> None:
    tree = uneven_tree()
    tree.observation = "a hall"
    steps = [node.step for node in tree.nodes if node.step is not None]
    for number, step in enumerate(steps):
        step.observation, step.action = f"room {number}", f"go {number}"
    steps[0].explore, steps[2].valid, steps[0].understood = True, False, False
    tree.leaves[1].status, tree.leaves[1].score = "overflow", 0.5
    record = episode_record(tree, tree.leaves[1])
    assert (record.task_id, record.success, record.score, record.steps) == ("t", False, 0.5, 2)
    assert (record.generated_tokens, record.invalid_actions, record.status) == (5, 2, "truncated")
    assert record.actions == ("go 0", "go 2") and record.explore_flags == (True, False)
    assert record.observations == ("a hall", "room 0")  # what was seen before each action


def test_an_episode_without_a_step_has_no_observations() -> None:
    tree = played([True])
    tree.leaves[0].node = 0
    assert episode_record(tree, tree.leaves[0]).observations == ()


def test_the_overall_row_sums_over_splits_and_kinds() -> None:
    trees = [played([True], "a", "l0", "x"), played([False], "b", "l0", "y"), played([True], "c", "l1", "x")]
    result = evaluation(trees, 1)
    assert (result.overall.n, result.overall.success, result.overall.kind) == (3, pytest.approx(2 / 3), "all")
    assert [(row.split, row.kind, row.n) for row in result.rows] == [
        ("l0", "x", 1), ("l0", "y", 1), ("l0", "all", 2), ("l1", "x", 1), ("l1", "all", 1),
    ]  # fmt: skip
    assert "pass_at" not in result.summary()


def test_nothing_to_evaluate_is_an_error(policy: Policy) -> None:
    with pytest.raises(TaskError, match="no task of split 'l0' was given"):
        evaluate_policy(policy, config(), [], split="l0")
