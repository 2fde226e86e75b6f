"""What a step's trees say about the rollout: the same metric names in every algorithm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firesteel.advantages import group_statistics
from firesteel.candidates import is_rare
from firesteel.metrics import repetitive_action_ratio
from firesteel.tree import Tree


def rollout_metrics(trees: Sequence[Tree], total_generated_tokens: int) -> dict[str, float]:
    """Success, cost and exploration of a set of finished trees. Means over leaves, shares over distinct steps."""
    leaves = [(tree, leaf) for tree in trees for leaf in tree.leaves if leaf.status != "failed"]
    episodes = [tree.episode(leaf) for tree, leaf in leaves]
    steps = [node.step for tree in trees for node in tree.nodes if node.step is not None]
    branchings = [node for tree in trees for node in tree.nodes if node.width > 1 and node.turn > 0]
    tokens = sum(tree.generated_tokens() for tree in trees)
    num_leaves = sum(len(tree.leaves) for tree in trees)
    rewards = [leaf.reward for _, leaf in leaves if leaf.reward is not None]
    metrics = {
        "rollout/success": mean([leaf.success for _, leaf in leaves]),
        "rollout/score": mean([leaf.score for _, leaf in leaves]),
        "rollout/reward": mean(rewards),
        "rollout/episode_steps": mean([len(episode.steps) for episode in episodes]),
        "rollout/leaves": float(num_leaves),
        "rollout/failed_leaves": float(num_leaves - len(leaves)),
        "rollout/masked_leaves": float(sum(leaf.masked for _, leaf in leaves)),
        "rollout/overflow": mean([leaf.status == "overflow" for _, leaf in leaves]),
        "rollout/generated_tokens": float(tokens),
        "rollout/total_generated_tokens": float(total_generated_tokens),
        "rollout/tokens_per_leaf": tokens / num_leaves if num_leaves else 0.0,
        "rollout/invalid_format": mean([not step.valid for step in steps]),
        "rollout/not_understood": mean([not step.understood for step in steps]),
        "rollout/truncated_responses": mean([step.truncated_response for step in steps]),
        "rollout/response_tokens": mean([len(node.token_ids) for tree in trees for node in tree.nodes if node.step]),
        "explore/ratio": mean([step.explore for step in steps]),
        "explore/branchings": float(len(branchings)),
        "explore/branch_turn": mean([node.turn for node in branchings]),
        "explore/entropy": mean([step.entropy for step in steps if step.entropy is not None]),
        "explore/repetition": mean(
            [repetitive_action_ratio([step.action for step in episode.steps]) for episode in episodes if episode.steps]
        ),
        **group_statistics(trees),
    }
    chosen = [step for step in steps if step.candidates is not None]
    return metrics | ({"explore/rare_choices": mean([is_rare(step) for step in chosen])} if chosen else {})


def mean(values: Sequence[float | bool]) -> float:
    """The mean, or NaN of nothing."""
    return float(np.mean([float(value) for value in values])) if len(values) else float("nan")
