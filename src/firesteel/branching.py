"""When a rollout branches, and how many leaves it may spend on it.

A criterion looks at a finished step and says how many continuations it would like; the budget of the task
says how many it gets (Eq. (7) of SPARK). The step's own action has run by then: the continuations start
with the *next* step, from forked environments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from firesteel.errors import ConfigError
from firesteel.plugins import nearest


class LeafBudget:
    """The leaves of one task: N at most, of which M are roots.

    `created` counts every leaf that was ever created for the task, whether active, finished, failed or only
    reserved. A grant is reserved at once and never given back.
    """

    def __init__(self, num_leaves: int, num_roots: int) -> None:
        self.num_leaves = num_leaves
        self.created = num_roots

    def grant(self, wanted: int) -> int:
        """Continuations granted to one branch point: b_eff = max(1, min(b, N - N_current + 1)), Eq. (7) of SPARK.

        One of them carries the parent's own leaf on, so the number of leaves grows by b_eff - 1.
        Differs from the paper: N_current counts all leaves ever created and is updated after every grant;
        counting once per step, or active leaves only, overshoots N.
        """
        granted = max(1, min(wanted, self.num_leaves - self.created + 1))
        self.created += granted - 1
        return granted


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """What a criterion may look at.

    `entropies_T` are the raw entropies (nats) of the step's tokens, `first_entropies_T` those of the first step
    of the same root; `log_vocabulary` is log V.
    """

    turn: int
    explore: bool
    entropies_T: list[float]
    first_entropies_T: list[float]
    log_vocabulary: float


class BranchCriterion(Protocol):
    """Decides on branching. `state_dict` and `load_state_dict` make a stateful one resumable."""

    def wanted(self, step: FinishedStep, rng: np.random.Generator) -> int:
        """The number of continuations that the step deserves, at least 1."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    """A criterion with nothing to remember."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class Chain(Stateless):
    """Never branches: with M = N this is plain GRPO."""

    def wanted(self, step: FinishedStep, rng: np.random.Generator) -> int:
        return 1


class ExploreTag(Stateless):
    """Branches after a step whose reasoning carries the complete `<explore>` tag: Eq. (4)-(5) of SPARK."""

    def __init__(self, width: int = 2) -> None:
        self.width = width

    def wanted(self, step: FinishedStep, rng: np.random.Generator) -> int:
        return self.width if step.explore else 1


class FixedProbability(Stateless):
    """Branches after any step with a fixed probability (a control; SPARK's own value is not stated)."""

    def __init__(self, width: int = 2, probability: float = 0.1) -> None:
        if not 0.0 <= probability <= 1.0:
            raise ConfigError(f"fixed_probability: probability must lie in [0, 1], got {probability}")
        self.width, self.probability = width, probability

    def wanted(self, step: FinishedStep, rng: np.random.Generator) -> int:
        return self.width if rng.random() < self.probability else 1


class RandomTag:
    """Branches at random as often as the policy tags, by turn: the control for *where* the tag stands.

    The rate is the policy's own share of explore steps at that turn, over all steps seen so far (plus one
    imaginary pair of steps, one tagged, so that the first rate is 1/2).
    """

    def __init__(self, width: int = 2) -> None:
        self.width = width
        self.counts: dict[int, list[int]] = {}

    def wanted(self, step: FinishedStep, rng: np.random.Generator) -> int:
        tagged, seen = self.counts.setdefault(step.turn, [0, 0])
        rate = (tagged + 1) / (seen + 2)
        self.counts[step.turn] = [tagged + step.explore, seen + 1]
        return self.width if rng.random() < rate else 1

    def state_dict(self) -> dict[str, Any]:
        return {"counts": [[turn, *pair] for turn, pair in sorted(self.counts.items())]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = {turn: [tagged, seen] for turn, tagged, seen in state["counts"]}


class Entropy(Stateless):
    """ARPO: branches where the first tokens of a step are more uncertain than those of the root's first step.

    H is the mean entropy of the first `num_tokens` tokens over log V; P = clip(base + weight * (H - H_first));
    each of width - 1 extra continuations is an independent draw with probability P.
    Differs from the paper: the entropy is that of the whole vocabulary, not of the ten most likely tokens.
    """

    def __init__(self, width: int = 2, base: float = 0.5, weight: float = 0.2, num_tokens: int = 20) -> None:
        self.width, self.base, self.weight, self.num_tokens = width, base, weight, num_tokens

    def probability(self, step: FinishedStep) -> float:
        """The chance of each extra continuation, in [0, 1]."""
        rise = self._mean(step.entropies_T) - self._mean(step.first_entropies_T)
        return min(1.0, max(0.0, self.base + self.weight * rise / step.log_vocabulary))

    def wanted(self, step: FinishedStep, rng: np.random.Generator) -> int:
        return 1 + int((rng.random(self.width - 1) < self.probability(step)).sum())

    def _mean(self, entropies_T: list[float]) -> float:
        head = entropies_T[: self.num_tokens]
        return math.fsum(head) / len(head) if head else 0.0


CRITERIA: dict[str, Any] = {
    "chain": Chain,
    "explore_tag": ExploreTag,
    "fixed_probability": FixedProbability,
    "random_tag": RandomTag,
    "entropy": Entropy,
}


def make_criterion(name: str, width: int, options: dict[str, Any]) -> BranchCriterion:
    """Builds a criterion by its name in `CRITERIA` or by "package.module:Class"."""
    from firesteel.plugins import load

    cls = load(name, CRITERIA, kind="criterion")
    arguments = dict(options) if cls is Chain else {"width": width, **options}
    try:
        criterion: BranchCriterion = cls(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"criterion '{name}' does not take the options {sorted(arguments)}{nearest(name, CRITERIA)}: {error}"
        ) from error
    return criterion
