"""Of several scored candidate actions, which one is executed.

Scores lie in [0, 10]; an action is viable when its score is above the threshold. A score of None was never given:
the action is not viable. Selectors are pure: whatever they depend on is an argument.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from firesteel.errors import ConfigError
from firesteel.plugins import load, nearest

Scores = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen action, those that were viable (sorted), and whether none was (`is_fallback`)."""

    action: str
    viable: tuple[str, ...]
    is_fallback: bool = False


class ActionSelector(Protocol):
    """Chooses among scored actions. `usage` counts how often each action was chosen so far."""

    def select(self, scores: Scores, usage: Mapping[str, int], rng: random.Random) -> Selection: ...


@dataclass(frozen=True, slots=True)
class ThresholdSelector:
    """Base of the selectors: they differ in what they choose among the viable actions.

    Where no action is viable, the best-scored one is chosen and the selection says so; what SPaRK does then is not
    stated. Ties are broken by a seeded draw.

    Args:
        threshold: Actions must score above it. SPaRK: 6.0.
        inclusive: Whether the threshold itself is enough. SPaRK's text reads as strictly above.
    """

    threshold: float = 6.0
    inclusive: bool = False

    def select(self, scores: Scores, usage: Mapping[str, int], rng: random.Random) -> Selection:
        known = {action: score for action, score in sorted(scores.items()) if score is not None}
        if not known:
            raise ConfigError(f"no candidate action has a score; the candidates were {', '.join(scores) or 'none'}")
        viable = {action: score for action, score in known.items() if self.is_viable(score)}
        if not viable:
            return Selection(_lowest({action: -score for action, score in known.items()}, rng), (), is_fallback=True)
        return Selection(self.choose(viable, usage, rng), tuple(viable))

    def is_viable(self, score: float) -> bool:
        """Whether a score passes the threshold."""
        return score >= self.threshold if self.inclusive else score > self.threshold

    def choose(self, viable: Mapping[str, float], usage: Mapping[str, int], rng: random.Random) -> str:
        """One of the viable actions, of which there is at least one."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RarityFirst(ThresholdSelector):
    """The viable action with the lowest score: SPaRK. Its "rarity" is a low score and no count of uses."""

    def choose(self, viable: Mapping[str, float], usage: Mapping[str, int], rng: random.Random) -> str:
        return _lowest(viable, rng)


@dataclass(frozen=True, slots=True)
class UsageRarity(ThresholdSelector):
    """The viable action that was used least so far: what SPaRK's abstract motivates."""

    def choose(self, viable: Mapping[str, float], usage: Mapping[str, int], rng: random.Random) -> str:
        return _lowest({action: float(usage.get(action, 0)) for action in viable}, rng)


@dataclass(frozen=True, slots=True)
class Best(ThresholdSelector):
    """The action with the highest score: PPO without diversity."""

    def choose(self, viable: Mapping[str, float], usage: Mapping[str, int], rng: random.Random) -> str:
        return _lowest({action: -score for action, score in viable.items()}, rng)


@dataclass(frozen=True, slots=True)
class Sample(ThresholdSelector):
    """A viable action drawn with probability softmax(score / temperature)."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"selector 'sample': temperature must be above 0, got {self.temperature}; use 'best'")

    def choose(self, viable: Mapping[str, float], usage: Mapping[str, int], rng: random.Random) -> str:
        highest = max(viable.values())
        weights = [math.exp((score - highest) / self.temperature) for score in viable.values()]
        return rng.choices(list(viable), weights)[0]


@dataclass(frozen=True, slots=True)
class Uniform(ThresholdSelector):
    """Any viable action with the same probability: the control for entropy that rises by construction."""

    def choose(self, viable: Mapping[str, float], usage: Mapping[str, int], rng: random.Random) -> str:
        return rng.choice(list(viable))


def _lowest(values: Mapping[str, float], rng: random.Random) -> str:
    """An action of the lowest value; among equals a draw."""
    least = min(values.values())
    return rng.choice([action for action, value in values.items() if value == least])


SELECTORS: dict[str, Any] = {
    "best": Best,
    "rarity_first": RarityFirst,
    "sample": Sample,
    "uniform": Uniform,
    "usage_rarity": UsageRarity,
}


def make_selector(name: str, options: Mapping[str, Any] | None = None) -> ActionSelector:
    """Builds a selector by its name in `SELECTORS` or by "package.module:Class"."""
    try:
        selector: ActionSelector = load(name, SELECTORS, kind="selector")(**(options or {}))
    except TypeError as error:
        raise ConfigError(
            f"selector '{name}' does not take the options {sorted(options or {})}{nearest(name, SELECTORS)}: {error}"
        ) from error
    return selector
