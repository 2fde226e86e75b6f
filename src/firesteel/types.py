"""The small immutable records that pass between environments, generators and trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Task:
    """What one episode is about. The same task and seed always give the same episode start.

    `kind` is the task type that reports group by; `data` is whatever the environment needs.
    """

    id: str
    kind: str = ""
    split: str = ""
    seed: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    demonstrations: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """What the agent sees. `admissible` is None where the environment does not list its actions."""

    text: str
    admissible: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of one action.

    `info` keys that reports know: `success` (bool), `score` (float in [0, 1], progress so far),
    `valid` (bool: the environment understood the action).
    """

    observation: Observation
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExpertStep:
    """One action of an environment's expert, with what it thinks.

    `explore` is True where information is missing or the last result was unexpected, so that
    several next steps are reasonable; `reason` is a phrase of a few words, never empty.
    """

    action: str
    explore: bool
    reason: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. `temperature` 0 means greedy; `top_k` 0 and `top_p` 1 mean off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One context to continue.

    `token_ids` is always the complete context since its last restart. `cache` may be the `cache`
    of an earlier completion whose context this one extends; a generator is free to ignore it.
    `seed` alone decides the draws: the same request gives the same tokens in any batch
    (up to float rounding of the batched matrix products).
    """

    token_ids: Sequence[int]
    seed: int
    sampling: SamplingParams
    cache: Any = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What a generator sampled for one request. All lists have one entry per token of `token_ids`.

    `logprobs` are raw (temperature 1, whole vocabulary); `sampling_logprobs` are of the distribution
    that was drawn from. `entropies` (nats) are of the raw distribution. The end-of-sequence token is part of
    `token_ids` when it was sampled. `finish_reason` is "stop" (end token or stop string) or "length".
    """

    token_ids: list[int]
    logprobs: list[float]
    sampling_logprobs: list[float]
    entropies: list[float]
    finish_reason: str
    policy_version: int
    cache: Any = None


@runtime_checkable
class Generator(Protocol):
    """Token ids in, completions out. The order of completions is that of the requests."""

    version: int

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continues every request."""
        ...

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        """Takes new weights (parameter name to tensor) and drops whatever was cached under the old ones."""
        ...
