"""Advantages of single steps among all visits of a group to the same state (GiGPO, 2505.10978).

Episodes of one task pass through the same states again and again: a closed fridge, an empty shelf. What two of them did
there can be compared although their pasts differ. A state is told by what was last observed in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from firesteel.tree import Leaf, Tree


def add_anchor_advantages(
    members: Sequence[tuple[Tree, Leaf]],
    weights_L: np.ndarray,
    scale_of: Callable[[np.ndarray, np.ndarray], float],
    *,
    weight: float,
    discount: float,
) -> None:
    """Adds `weight` times the advantage among visits to the same state to `Leaf.advantages`.

    `members` are the leaves of one group, `weights_L` their weights. The advantage of a visit is its return
    (`returns_to_go`) minus the weighted mean over all visits to that state, divided by `scale_of` their returns and
    weights; a state that was visited once adds 0.

    Differs from the paper: visits are weighted like leaves; an action that was not understood leaves the state as it
    was, so that "Nothing happens." is no state of its own.
    """
    visits: dict[str, list[tuple[int, int]]] = {}
    returns_L = [returns_to_go(leaf, discount=discount) for _, leaf in members]
    for number, (tree, leaf) in enumerate(members):
        for place, state in enumerate(states(tree, leaf)):
            visits.setdefault(state, []).append((number, place))
    for places in visits.values():
        returns_V = np.array([returns_L[number][place] for number, place in places])
        if len(places) == 1 or np.ptp(returns_V) == 0.0:
            continue
        weights_V = np.array([weights_L[number] for number, _ in places])
        values_V = (returns_V - np.average(returns_V, weights=weights_V)) / scale_of(returns_V, weights_V)
        for (number, place), value in zip(places, values_V, strict=True):
            advantages = members[number][1].advantages
            assert advantages is not None
            advantages[place] += weight * float(value)


def returns_to_go(leaf: Leaf, *, discount: float) -> list[float]:
    """Per step the sum of what comes from it on, each later step `discount` times less; the reward comes at the end."""
    returns: list[float] = []
    later = leaf.reward or 0.0
    for number, reward in enumerate(reversed(leaf.step_rewards or ())):
        later = reward + (discount * later if number else later)
        returns.append(later)
    return returns[::-1]


def states(tree: Tree, leaf: Leaf) -> list[str]:
    """Per step of a leaf what had been observed before it; an action that was not understood changes nothing."""
    found: list[str] = []
    state = tree.observation
    for step in tree.episode(leaf).steps:
        found.append(state)
        if step.understood:
            state = step.observation
    return found
