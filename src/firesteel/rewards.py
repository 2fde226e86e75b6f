"""Rewards: any function of a finished episode.

A reward function returns a number (the outcome), or an `EpisodeReward` that adds something to single steps.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from firesteel.config import RewardConfig
from firesteel.errors import ConfigError
from firesteel.plugins import load
from firesteel.tree import Episode, Tree


@dataclass(frozen=True, slots=True)
class EpisodeReward:
    """`outcome` counts for every step; `steps` (one per step, or empty) counts for that step only."""

    outcome: float
    steps: Sequence[float] = field(default_factory=tuple)


def outcome(episode: Episode, config: RewardConfig) -> EpisodeReward:
    """`success` if the episode succeeded, else 0; minus `invalid_penalty` on each invalid step (SPARK: 10, 0.1).

    With a `discount` below 1 a success in n steps counts discount^(n - 1) times.
    """
    worth = config.success * discounting(episode, config) if episode.success else 0.0
    return EpisodeReward(worth, invalid_penalties(episode, config))


def score(episode: Episode, config: RewardConfig) -> EpisodeReward:
    """`success` times the environment's score in [0, 1]; the same discount and step penalties as `outcome`."""
    worth = config.success * episode.score * discounting(episode, config)
    return EpisodeReward(worth, invalid_penalties(episode, config))


def discounting(episode: Episode, config: RewardConfig) -> float:
    """discount^(n - 1) for an episode of n steps, 1 for one without steps."""
    return config.discount ** max(len(episode.steps) - 1, 0)


def invalid_penalties(episode: Episode, config: RewardConfig) -> list[float]:
    """-`invalid_penalty` for each step whose response broke the format (or, if asked, was not understood)."""
    return [
        -config.invalid_penalty if not step.valid or (config.invalid_when == "either" and not step.understood) else 0.0
        for step in episode.steps
    ]


REWARDS: dict[str, Any] = {
    "outcome": outcome,
    "score": score,
    # ToolExpander's 1.01, 1 or 0, and Tool Zero's, which goes from overlap to exact calls
    "self_exemplifying": "firesteel.self_exemplifying:self_exemplifying_reward",
    "tool_zero": "firesteel.environments.tool_calls.rewards:ToolZeroReward",
}


def score_trees(trees: Sequence[Tree], config: RewardConfig, *, step: int = 0, call_format: str | None = None) -> None:
    """Writes `reward`, `step_rewards` and `masked` onto the leaves of finished trees.

    A reward that is a class is made anew with the number of the training step, `cls(step=step)`, and then called. Where
    it has a parameter `call_format`, it is also given the environment's (its option `format`) unless that is None.
    """
    function: Callable[..., Any] = load(config.name, REWARDS, kind="reward")
    builtin = callable(REWARDS.get(config.name))
    if isinstance(function, type):
        takes_format = call_format is not None and "call_format" in inspect.signature(function).parameters
        function = function(step=step, call_format=call_format) if takes_format else function(step=step)
    for tree in trees:
        for leaf in tree.leaves:
            if leaf.status in ("active", "failed"):
                continue
            episode = tree.episode(leaf)
            value = function(episode, config) if builtin else function(episode)
            worth, steps = _checked(value, episode, config.name)
            rule = overlong_rule(episode, config)
            leaf.masked = rule == "mask"
            leaf.reward = 0.0 if rule == "zero" else worth
            leaf.step_rewards = steps or [0.0] * len(episode.steps)


def _checked(value: Any, episode: Episode, name: str) -> tuple[float, list[float]]:
    """What a reward function gave as (outcome, step rewards); anything but finite numbers is refused."""
    given = value if isinstance(value, EpisodeReward) else EpisodeReward(value)
    try:
        worth, steps = float(given.outcome), [float(step) for step in given.steps]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"reward '{name}' gave {value!r} for an episode of task '{episode.task.id}'; return a number or an "
            "EpisodeReward"
        ) from error
    if not all(map(math.isfinite, (worth, *steps))):
        raise ConfigError(
            f"reward '{name}' gave {value!r} for an episode of task '{episode.task.id}'; it must be finite"
        )
    if steps and len(steps) != len(episode.steps):
        raise ConfigError(
            f"reward '{name}' gave {len(steps)} step rewards for {len(episode.steps)} steps of task "
            f"'{episode.task.id}'; give one per step or none"
        )
    return worth, steps


def overlong_rule(episode: Episode, config: RewardConfig) -> str:
    """What applies to this episode: "as_is", "zero" or "mask" (overflowing contexts, cut-off responses)."""
    if episode.status == "overflow":
        return config.overflow
    if any(step.truncated_response for step in episode.steps):
        return config.truncated_response
    return "as_is"


def pad_groups(trees: Sequence[Tree], num_leaves: int, *, seed: int) -> None:
    """Fills groups short of `num_leaves` with copies of their own leaves, drawn at random (SPARK's `use_pad`).

    A copy is counted by `Leaf.multiplicity`; nothing is duplicated.
    """
    rng = random.Random(seed)
    for tree in trees:
        leaves = tree.counting_leaves()
        for leaf in leaves:
            leaf.multiplicity = 1
        for _ in range(num_leaves - len(leaves) if leaves else 0):
            rng.choice(leaves).multiplicity += 1
