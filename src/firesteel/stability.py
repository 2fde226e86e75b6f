"""Whether a training is collapsing: the rule, what moved meanwhile, and the figures that show it early."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from firesteel.report import mean
from firesteel.tree import Tree
from firesteel.types import Task

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Move:
    """How an indicator is told: `is_far(before, now)` says whether its change is worth telling."""

    words: str
    is_far: Callable[[float, float], bool]
    show: Callable[[float], str]

    def line(self, before: float, now: float) -> str:
        """The change as people read it."""
        return f"{self.words}: {self.show(before)} to {self.show(now)}"


def _rose(before: float, now: float) -> bool:
    """For shares: by more than a fifth of all."""
    return now > before + 0.2


def _grew(before: float, now: float) -> bool:
    """For amounts: to more than five times, and not from nothing to next to nothing."""
    return now > max(0.1, 5 * before)


def _left(before: float, now: float) -> bool:
    """To less than half or more than twice."""
    return not before / 2 <= now <= 2 * before


_SHARE, _AMOUNT, _COUNT = "{:.0%}".format, "{:.2g}".format, "{:.0f}".format
_MOVES = {
    "rollout/dead_groups": Move("groups without a gradient", _rose, _SHARE),
    "losses/entropy": Move("entropy", _left, _AMOUNT),
    "losses/kl": Move("KL to the start", _grew, _AMOUNT),
    "losses/clip_fraction": Move("clipped tokens", _rose, _SHARE),
    "learner/grad_norm": Move("gradient norm", _grew, _AMOUNT),
    "learner/skipped_steps": Move("optimiser steps without a finite gradient", lambda before, now: now > 0, _SHARE),
    "rollout/response_tokens": Move("tokens a response", _left, _COUNT),
    "rollout/invalid_format": Move("responses out of form", _rose, _SHARE),
    "rollout/not_understood": Move("actions not understood", _rose, _SHARE),
}
INDICATORS = tuple(_MOVES)
"""The metrics whose change is told when a training collapses."""

_ZERO_AT_START = ("losses/kl", "losses/clip_fraction", "learner/skipped_steps")

MOST_LABELS = 12
"""With more labels than this, rewards are not logged by label."""


@dataclass(frozen=True, slots=True)
class Collapse:
    """A collapse: at which update, how far success on validation fell, and what else had changed since its best."""

    step: int
    success: float
    best: float
    best_step: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        best, now = f"{self.best:.1%} (step {self.best_step})", f"{self.success:.1%} (step {self.step})"
        return f"collapsed: success on validation fell from {best} to {now}; {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as a summary file holds them."""
        return asdict(self) | {"reasons": list(self.reasons)}


class CollapseDetector:
    """Collapse: success on validation below a share `below` of its best in `patience` evaluations in a row.

    `note` takes the metrics of every step; their means between evaluations tell why. A training that recovers can
    collapse again; one that stays low is told once.
    """

    def __init__(self, below: float, patience: int) -> None:
        self.below = below
        self.patience = patience
        self._best: float | None = None
        self._best_step = 0
        self._num_low = 0
        self._at_best: Figures = {}
        self._sums: Figures = {}
        self._counts: dict[str, int] = {}

    def note(self, metrics: Mapping[str, Any]) -> None:
        """Remembers a step's indicators."""
        known = {name: value for name in INDICATORS if (value := metrics.get(name)) is not None and value == value}
        if self._best_step == 0 and not self._at_best:
            # The first step's trees are the start's own; what its updates did to the weights is not.
            self._at_best = known | {name: 0.0 for name in _ZERO_AT_START if name in known}
        for name, value in known.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def observe(self, step: int, success: float | None) -> Collapse | None:
        """Takes in an evaluation after `step` updates; a `Collapse` where this is the one that completes the rule."""
        now = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        if success is None:
            return None
        if self._best is None or success > self._best:
            self._best, self._best_step, self._num_low = success, step, 0
            self._at_best = now
            return None
        self._num_low = self._num_low + 1 if success < self.below * self._best else 0
        if self._num_low != self.patience:
            return None
        return Collapse(step, success, self._best, self._best_step, reasons(self._at_best, now))

    def start_over(self) -> None:
        """Forgets the low evaluations: the best weights are back."""
        self._num_low = 0

    def state_dict(self) -> dict[str, Any]:
        """All that later verdicts depend on."""
        return {
            "best": self._best, "best_step": self._best_step, "num_low": self._num_low, "at_best": dict(self._at_best),
            "sums": dict(self._sums), "counts": dict(self._counts),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._best, self._best_step, self._num_low = state["best"], int(state["best_step"]), int(state["num_low"])
        self._at_best, self._sums, self._counts = dict(state["at_best"]), dict(state["sums"]), dict(state["counts"])


def reasons(before: Figures, now: Figures) -> tuple[str, ...]:
    """What moved far between two sets of indicators, in words; one line that says so where nothing did."""
    known = [name for name in INDICATORS if name in before and name in now]
    moved = [name for name in known if _MOVES[name].is_far(before[name], now[name])]
    lines = [_MOVES[name].line(before[name], now[name]) for name in moved]
    return tuple(lines) or ("no indicator moved far",)


def reward_by_label(trees: Sequence[Tree], label_of: Callable[[Task], str]) -> Figures:
    """The mean reward of the counting leaves of each label, as `rollout/reward/LABEL`: reward by difficulty.

    Nothing where all tasks have the same label, or more than `MOST_LABELS` have one.
    """
    rewards: dict[str, list[float]] = {}
    for tree in trees:
        scored = [leaf.reward for leaf in tree.counting_leaves() if leaf.reward is not None]
        rewards.setdefault(label_of(tree.task), []).extend(scored)
    known = {label: values for label, values in sorted(rewards.items()) if label and values}
    if not 2 <= len(known) <= MOST_LABELS:
        return {}
    return {f"rollout/reward/{label}": mean(values) for label, values in known.items()}
