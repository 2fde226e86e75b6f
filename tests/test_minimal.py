"""The flat recipe and the library compute the same thing from the same sampled tokens."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import RECIPES, load_recipe_module
from transformers import AutoModelForCausalLM, AutoTokenizer

from firesteel.advantages import estimate_advantages
from firesteel.config import Config
from firesteel.context import ContextBuilder, parse_response
from firesteel.environments.household import Household
from firesteel.learners.learner import Learner
from firesteel.learners.policy_gradient import PolicyGradientObjective
from firesteel.packing import pack
from firesteel.rewards import score_trees
from firesteel.tree import Leaf, Step, Tree

minimal = load_recipe_module("minimal")
SETTINGS = minimal.Settings(num_leaves=6, num_roots=3, max_turns=4, size="small", invalid_penalty=0.1)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def context(tiny_model: Path) -> ContextBuilder:
    return ContextBuilder(AutoTokenizer.from_pretrained(tiny_model), "compact")


@pytest.fixture(scope="module")
def groups(model: Any, context: ContextBuilder) -> Iterator[Any]:
    """Leaves that a small model sampled; then the model moves a little, so that ratios are not 1 and clipping acts."""
    tasks = list(Household.tasks("train", size="small", count=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        grown = minimal.grow(tasks, model, context, SETTINGS, random.Random(0))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    # No leaf of so small a model succeeds by itself; outcomes differ inside two of the groups.
    for group in grown[:2]:
        group[0].success = True
    return grown


def as_tree(group: list[Any], context: ContextBuilder, name: str) -> Tree:
    """The library's record of one group of the flat recipe: a shared turn is one node, a grant is its node's width."""
    tree = Tree(task=Household.tasks("train", size="small", count=1)[0], group=name)
    opening = tree.add(-1, "prompt", 0, group[0].turns[0].fed, restart=True, width=SETTINGS.num_roots)
    fed_after: dict[int, int] = {}
    response_of: dict[int, int] = {}
    for index, leaf in enumerate(group):
        parent = opening.index
        for number, turn in enumerate(leaf.turns):
            if number:
                before = id(leaf.turns[number - 1])
                if before not in fed_after:
                    fed_after[before] = tree.add(parent, "prompt", number, turn.fed).index
                parent = fed_after[before]
            if id(turn) not in response_of:
                text = context.decode_response(turn.sampled)
                parsed = parse_response(text)
                step = Step(text, parsed.action or "", parsed.tag, parsed.explore, parsed.valid)
                response_of[id(turn)] = tree.add(
                    parent, "response", number, turn.sampled, sampling_logprobs=turn.logprobs, step=step
                ).index
            parent = response_of[id(turn)]
        tree.leaves.append(Leaf(index, parent, leaf.root, "finished", success=leaf.success))
    for node in tree.nodes[1:]:
        node.width = max(1, sum(child.parent == node.index for child in tree.nodes))
    return tree


def library_config(baseline: str) -> Config:
    settings: dict[str, Any] = {
        "advantage": {"baseline": baseline},
        "learner": {"minibatches": 1, "max_grad_norm": 1e9},
    }
    return minimal.config().updated(settings, {"reward": {"invalid_penalty": SETTINGS.invalid_penalty}})


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters()}


def library_loss(groups: Any, model: Any, context: ContextBuilder, config: Config) -> dict[str, float]:
    """One update of the library at a rate that moves nothing; the gradients stay on the model."""
    trees = [as_tree(group, context, str(number)) for number, group in enumerate(groups)]
    score_trees(trees, config.reward)
    estimate_advantages(trees, config.advantage)
    batch = pack(trees, weighting=config.advantage.weighting, aggregation=config.loss.aggregation)
    frozen = config.learner.model_copy(update={"lr": 1e-30})
    learner = Learner(model, PolicyGradientObjective(config.loss), frozen, config.loss, total_steps=1)
    return learner.update(batch)


def test_the_groups_branch_and_differ_enough_to_compare(groups: Any) -> None:
    assert any(len(group) > SETTINGS.num_roots for group in groups)
    rewards = {turn.reward for group in groups for leaf in group for turn in leaf.turns}
    assert rewards == {0.0, -SETTINGS.invalid_penalty}


def test_no_group_outgrows_its_budget_and_path_weights_add_up_to_one(groups: Any) -> None:
    for group in groups:
        assert SETTINGS.num_roots <= len(group) <= SETTINGS.num_leaves
        assert sum(leaf.weight for leaf in group) == pytest.approx(1.0, abs=1e-12)


def test_a_shared_turn_ends_with_a_complete_explore_tag_and_only_there_paths_part(
    groups: Any, context: ContextBuilder
) -> None:
    for group in groups:
        for leaf in group:
            for other in group:
                shared = [turn for turn, twin in zip(leaf.turns, other.turns, strict=False) if turn is twin]
                if leaf is not other and shared:
                    assert parse_response(context.decode_response(shared[-1].sampled)).explore
                    assert leaf.root == other.root


def test_weights_are_those_of_the_library(groups: Any, context: ContextBuilder) -> None:
    for number, group in enumerate(groups):
        tree = as_tree(group, context, str(number))
        assert [tree.path_weight(leaf) for leaf in tree.leaves] == pytest.approx([leaf.weight for leaf in group])


def test_the_budget_by_hand() -> None:
    class Fork:
        def fork(self) -> Fork:
            return self

    def grow(granted_of: int, width: int) -> list[Any]:
        group = [minimal.Leaf(root, Fork(), [], 0.25) for root in range(granted_of)]
        minimal.branch(group, group[0], minimal.Settings(num_leaves=8, width=width))
        return [leaf.weight for leaf in group]

    # 4 leaves of 8, B = 2: one more, and both halves of the leaf count 1/8
    assert grow(4, 2) == [0.125, 0.25, 0.25, 0.25, 0.125]
    # 7 of 8, B = 3: only 8 - 7 + 1 = 2 continuations
    assert grow(7, 3) == [0.125, *[0.25] * 6, 0.125]
    # nothing left: b = 1
    assert grow(8, 3) == [0.25] * 8


def test_advantages_by_hand() -> None:
    def leaf(root: int, weight: float, success: bool, rewards: list[float]) -> Any:
        turns = [minimal.Turn([1], [2, 3], [-1.0, -1.0], reward) for reward in rewards]
        return minimal.Leaf(root, None, [], weight, turns, success)

    group = [leaf(0, 0.25, True, [0.0, -0.1]), leaf(0, 0.25, False, [0.0]), leaf(1, 0.5, False, [-0.1])]
    rows = minimal.make_rows(group, minimal.Settings())
    assert rows[0].is_sampled == [False, True, True, False, True, True]
    # the other root's only leaf has -0.1: 1 + 0.1 for the valid step, 0.9 + 0.1 for the invalid one
    assert rows[0].advantages == pytest.approx([0, 1.1, 1.1, 0, 1.0, 1.0])
    assert rows[1].advantages == pytest.approx([0, 0.1, 0.1])
    # root 0 has 0.95 (the mean of its steps) and 0, at equal weights: 0.475
    assert rows[2].advantages == pytest.approx([0, -0.575, -0.575])
    # all leaves: 0.25 * 0.95 + 0.25 * 0 + 0.5 * -0.1 = 0.1875
    rows = minimal.make_rows(group, minimal.Settings(baseline="group_mean"))
    assert rows[1].advantages == pytest.approx([0, -0.1875, -0.1875])


@pytest.mark.parametrize("baseline", ["leave_one_root_out", "group_mean"])
def test_loss_and_gradients_equal_those_of_the_library(
    groups: Any, model: Any, context: ContextBuilder, baseline: str
) -> None:
    metrics = library_loss(groups, model, context, library_config(baseline))
    expected = gradients(model)
    assert metrics["losses/clip_fraction"] > 0.02
    assert metrics["pack/token_ratio"] > 1.0

    settings = minimal.Settings(**{**vars(SETTINGS), "baseline": baseline})
    model.zero_grad()
    rows = [row for group in groups for row in minimal.make_rows(group, settings)]
    loss = minimal.accumulate(model, rows, settings)
    assert loss == pytest.approx(metrics["losses/policy"], abs=1e-6)
    assert sum(float(gradient.norm()) for gradient in expected.values()) > 1e-2
    for name, gradient in gradients(model).items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


def test_sampled_log_probabilities_are_those_of_a_plain_forward_pass(model: Any, context: ContextBuilder) -> None:
    prompts = [[5, 6, 7], [300, 8, 9, 10, 11, 12]]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        answers = minimal.sample(model, context, prompts, SETTINGS)
    for prompt, (tokens, logprobs) in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[range(len(tokens)), tokens]
        assert logprobs == pytest.approx(expected.tolist(), abs=1e-5)
        assert all(token not in context.stop_token_ids for token in tokens[:-1])


def test_the_settings_for_the_library_are_the_same() -> None:
    own, config = minimal.Settings(), minimal.config()
    assert config.rollout.criterion == "explore_tag"
    assert (config.rollout.num_leaves, config.rollout.num_roots, config.rollout.width) == (8, 4, 2)
    assert (own.num_leaves, own.num_roots, own.width, own.max_turns) == (8, 4, 2, config.rollout.max_turns)
    assert (config.learner.lr, config.learner.minibatches) == (own.learning_rate, own.minibatches)
    assert (config.learner.betas, config.learner.weight_decay, config.learner.max_grad_norm) == ((0.9, 0.95), 0.0, 1.0)


def test_it_runs_from_the_command_line(tiny_model: Path) -> None:
    command = [sys.executable, str(RECIPES / "minimal.py"), str(tiny_model), "--steps", "2", "--size", "small"]
    sizes = ["--tasks-per-step", "2", "--num-leaves", "4", "--num-roots", "2", "--max-turns", "3"]
    result = subprocess.run([*command, *sizes], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["step 1", "step 2"]
