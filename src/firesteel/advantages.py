"""Advantages: pure functions on arrays, and a thin writer onto trees.

Legend: `L` leaves of one group, `S` samples (leaves, or steps of leaves).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from firesteel.anchors import add_anchor_advantages
from firesteel.config import AdvantageConfig
from firesteel.tree import Leaf, Tree

WEIGHTINGS = ("path", "leaf", "node")


def leaf_weights(tree: Tree, weighting: str) -> dict[int, float]:
    """The weight of each counting leaf of a tree, by leaf index.

    `path`: (1/M) * product of 1/b over the branchings on the path. `leaf`: 1, times the leaf's multiplicity.
    `node`: 1 (the division by the leaves below a node happens node by node, see `packing`).
    """
    if weighting == "path":
        return {leaf.index: tree.path_weight(leaf) for leaf in tree.counting_leaves()}
    copies = weighting == "leaf"
    return {leaf.index: float(leaf.multiplicity if copies else 1) for leaf in tree.counting_leaves()}


def baselines(scores_L: np.ndarray, weights_L: np.ndarray, roots_L: np.ndarray, *, kind: str) -> np.ndarray:
    """The baseline of each leaf, shape [L].

    `group_mean`: the weighted mean of the group, the leaf itself included (GRPO).
    `leave_one_root_out`: the weighted mean over the leaves of the *other* roots; unbiased. A group with one root
    has no such leaves: the baseline is the leaf's own score, so its advantage is 0.
    `none`: 0.
    """
    if kind == "none":
        return np.zeros_like(scores_L)
    if kind == "group_mean":
        return np.full_like(scores_L, np.average(scores_L, weights=weights_L))
    if kind != "leave_one_root_out":
        raise ValueError(f"baseline must be none, group_mean or leave_one_root_out, got '{kind}'")
    result = scores_L.astype(float).copy()
    for root in np.unique(roots_L):
        others = roots_L != root
        if weights_L[others].sum() > 0:
            result[~others] = np.average(scores_L[others], weights=weights_L[others])
    return result


def spread(scores_S: np.ndarray, weights_S: np.ndarray, *, std: str) -> float:
    """The named standard deviation of a group: `none` gives 1, `population` divides by n, `sample` by n - 1.

    With weights, `population` is the weighted one and `sample` multiplies its square by n / (n - 1),
    where n counts a leaf with copies that many times.
    """
    if std == "none":
        return 1.0
    if std not in ("population", "sample"):
        raise ValueError(f"std must be none, population or sample, got '{std}'")
    mean = np.average(scores_S, weights=weights_S)
    variance = float(np.average((scores_S - mean) ** 2, weights=weights_S))
    if std == "sample":
        count = float(weights_S.sum()) if weights_S.min() >= 1 else float(len(scores_S))
        variance *= count / (count - 1) if count > 1 else 0.0
    return math.sqrt(variance)


def scale(scores_S: np.ndarray, weights_S: np.ndarray, std: str, std_floor: float, eps: float) -> float:
    """What advantages are divided by: max(std, std_floor) + eps, or 1 for `std="none"`."""
    return 1.0 if std == "none" else max(spread(scores_S, weights_S, std=std), std_floor) + eps


def group_advantages(
    scores_L: np.ndarray,
    weights_L: np.ndarray,
    roots_L: np.ndarray,
    *,
    baseline: str = "group_mean",
    std: str = "none",
    eps: float = 1e-6,
    std_floor: float = 0.0,
) -> tuple[np.ndarray, float]:
    """Per leaf the baseline, and the common scale: advantage of a score s of leaf l = (s - baseline_l) / scale.

    scale = max(std, std_floor) + eps, or 1 for `std="none"`. An all-equal group and a group of one
    give advantages of exactly 0.

    Returns:
        (baselines, shape [L]; scale, > 0).
    """
    return baselines(scores_L, weights_L, roots_L, kind=baseline), scale(scores_L, weights_L, std, std_floor, eps)


def estimate_advantages(trees: Sequence[Tree], config: AdvantageConfig) -> None:
    """Writes `Leaf.advantages` (one per response node of the path) for all counting leaves.

    Trees with the same `group` form one group. The score of step n of leaf l is s(l,n) = R_l + step_reward_n.
    `over="leaf"` takes statistics over leaves (a leaf's score is the mean of its steps' scores);
    `over="step"` takes them over all step samples, so that long episodes weigh more (SPARK's code).
    """
    groups: dict[str, list[tuple[Tree, Leaf]]] = {}
    for tree in trees:
        for leaf in tree.counting_leaves():
            groups.setdefault(tree.group, []).append((tree, leaf))
    for members in groups.values():
        _write_group(members, config)


def _write_group(members: list[tuple[Tree, Leaf]], config: AdvantageConfig) -> None:
    steps_L = [(leaf.reward or 0.0) + np.asarray(leaf.step_rewards or (), dtype=float) for _, leaf in members]
    weights = {id(tree): leaf_weights(tree, config.weighting) for tree, _ in members}
    weights_L = np.array([weights[id(tree)][leaf.index] for tree, leaf in members])
    tree_numbers = {identity: number for number, identity in enumerate(weights)}
    roots_L = np.array([tree_numbers[id(tree)] * 1_000_000 + leaf.root for tree, leaf in members])
    if config.over == "step":
        scores_S = np.concatenate(steps_L)
        lengths_L = [len(steps) for steps in steps_L]
        weights_S, roots_S = np.repeat(weights_L, lengths_L), np.repeat(roots_L, lengths_L)
        firsts = np.cumsum([0, *lengths_L[:-1]])
    else:
        scores_S = np.array(
            [steps.mean() if len(steps) else leaf.reward for steps, (_, leaf) in zip(steps_L, members, strict=True)],
            dtype=float,
        )
        weights_S, roots_S, firsts = weights_L, roots_L, np.arange(len(members))
    alone = len(members) == 1 or np.ptp(np.concatenate([scores_S, *steps_L])) == 0.0
    baseline_S, divisor = group_advantages(
        scores_S, weights_S, roots_S,
        baseline=config.baseline, std=config.std, eps=config.eps, std_floor=config.std_floor,
    )  # fmt: skip
    for (_, leaf), steps, first in zip(members, steps_L, firsts, strict=True):
        if config.baseline != "none" and alone:
            leaf.advantages = [0.0] * len(steps)
        else:
            leaf.advantages = [float((value - baseline_S[first]) / divisor) for value in steps]
    if config.anchor_weight:
        add_anchor_advantages(
            members,
            weights_L,
            lambda returns_V, weights_V: scale(returns_V, weights_V, config.std, config.std_floor, config.eps),
            weight=config.anchor_weight,
            discount=config.anchor_discount,
        )


def permute_within_groups(trees: Sequence[Tree], *, seed: int) -> None:
    """The control arm of a learning claim: the same rewards, handed to random leaves of the same tree.

    Call it before `estimate_advantages`; everything else of the update stays as it is.
    """
    rng = np.random.default_rng(seed)
    for tree in trees:
        leaves = tree.counting_leaves()
        rewards = [leaf.reward for leaf in leaves]
        for leaf, source in zip(leaves, rng.permutation(len(leaves)), strict=True):
            leaf.reward = rewards[source]


def group_statistics(trees: Sequence[Tree]) -> dict[str, float]:
    """How much signal the groups carry: shares of groups that are dead (all rewards equal), all solved, none solved."""
    groups: dict[str, list[Leaf]] = {}
    for tree in trees:
        groups.setdefault(tree.group, []).extend(tree.counting_leaves())
    live = [leaves for leaves in groups.values() if leaves]
    if not live:
        return {"rollout/dead_groups": 1.0, "rollout/solved_groups": 0.0, "rollout/failed_groups": 0.0}
    dead = [len({leaf.reward for leaf in leaves}) == 1 for leaves in live]
    solved = [all(leaf.success for leaf in leaves) for leaves in live]
    failed = [not any(leaf.success for leaf in leaves) for leaves in live]
    return {
        "rollout/dead_groups": sum(dead) / len(live),
        "rollout/solved_groups": sum(solved) / len(live),
        "rollout/failed_groups": sum(failed) / len(live),
    }
