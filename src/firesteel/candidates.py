"""Candidate actions in a rollout: several responses are sampled for a step, rated, and a selector executes one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from firesteel.config import RolloutConfig
from firesteel.errors import ConfigError
from firesteel.selection import ActionSelector, make_selector
from firesteel.tree import Step, Tree


@runtime_checkable
class Rater(Protocol):
    """An environment that can say what an action is, and how good it looks before it is played."""

    def rate(self, action: str) -> tuple[str, float]:
        """(label, score in [0, 10]); two actions with the same label are the same kind, such as the same tool."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """The number of the chosen action, its label, and the score of each label."""

    number: int
    label: str
    scores: dict[str, float]


class Candidates:
    """Chooses among the responses of a step as SPaRK chooses among the tools that it asked for.

    Of responses with the same label the first stands for all. How often a label was executed is counted over the
    steps of the tree, for selectors that look at it.

    Differs from the paper: there a judge scores one query for each of eight tools, and learning is offline. Here the
    policy's own samples are the candidates, the environment rates them by rules, and the step is learnt from as if it
    had been drawn alone, which a selector biases: a run that claims something needs an arm with the selector `uniform`.
    """

    def __init__(self, config: RolloutConfig) -> None:
        self.count = config.candidates
        self._selector: ActionSelector = make_selector(config.selector, config.selector_options)

    def choose(self, actions: Sequence[str], rater: object, tree: Tree, seed: int) -> Choice:
        """Which of the actions is executed; the same seed gives the same choice."""
        if not isinstance(rater, Rater):
            raise ConfigError(
                f"rollout.candidates is {self.count}, and {type(rater).__name__} has no rate(action) -> (label, "
                "score); implement it, or set rollout.candidates=1"
            )
        rated = [rater.rate(action) for action in actions]
        scores: dict[str, float] = {}
        for label, score in rated:
            scores.setdefault(label, score)
        chosen = self._selector.select(scores, used_labels(tree), random.Random(seed)).action
        return Choice([label for label, _ in rated].index(chosen), chosen, scores)


def used_labels(tree: Tree) -> Counter[str]:
    """How often each label was executed in the steps of a tree so far."""
    return Counter(node.step.label for node in tree.nodes if node.step is not None and node.step.label)


def is_rare(step: Step) -> bool:
    """Whether a selector executed something else than the best-scored candidate of several."""
    scores = step.candidates or {}
    return len(scores) > 1 and scores[step.label] < max(scores.values())
