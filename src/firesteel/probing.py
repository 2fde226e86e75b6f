"""Probing: how many of a few rollouts solve each task, batched, in waves, stopped for what is solved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from firesteel.branching import Chain
from firesteel.config import RolloutConfig
from firesteel.errors import ConfigError
from firesteel.rollout import Grower, RolloutStats
from firesteel.types import Task

WAVES = (1, 1, 2, 2, 4)
"""Ten rollouts a task: small waves first, because most tasks are solved by their first rollouts.

In expectation they cost at most 1.13 times the tokens of a prober that stops at the first success (32 rollouts: 1.17),
whatever the tasks: for one of success probability p the numbers of rollouts have that ratio at most
(`expected_rollouts`), and tokens are these times the mean length of a rollout in both cases, however long those that
succeed are, because neither prober knows what comes (Wald's identity). `benchmarks/probe.py` measures it."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one rollout of a probe came to. `tokens` were sampled for it."""

    success: bool
    tokens: int


class Play(Protocol):
    """Plays `rollouts` episodes of every task, in order; `name` goes into the seeds."""

    def __call__(self, tasks: Sequence[Task], rollouts: int, name: str) -> list[list[Rollout]]: ...


@dataclass(frozen=True, slots=True)
class Probe:
    """A task's probe. `sequential_tokens` is what a prober would have spent that stops at the first success."""

    solved: bool
    rollouts: int
    tokens: int
    sequential_tokens: int


def waves_of(rollouts: int) -> tuple[int, ...]:
    """1, 1, 2, 2, 4, 4, 8, ... cut so that they add up to `rollouts`."""
    waves: list[int] = []
    while sum(waves) < rollouts:
        waves.append(min(2 ** (len(waves) // 2), rollouts - sum(waves)))
    return tuple(waves)


def probe(tasks: Sequence[Task], play: Play, name: str, *, waves: Sequence[int] = WAVES) -> list[Probe]:
    """Plays wave after wave; a task that is solved takes no part in the next. One result a task, in order."""
    if not waves or min(waves) < 1:
        raise ConfigError(f"probe '{name}': waves must be positive numbers of rollouts, got {tuple(waves)}")
    done: list[list[Rollout]] = [[] for _ in tasks]
    for number, rollouts in enumerate(waves):
        open_places = [place for place, seen in enumerate(done) if not any(one.success for one in seen)]
        if not open_places:
            break
        played = play([tasks[place] for place in open_places], rollouts, f"{name}/wave-{number}")
        for place, outcome in zip(open_places, played, strict=True):
            done[place] += outcome
    return [_summary(seen) for seen in done]


def _summary(seen: Sequence[Rollout]) -> Probe:
    first = next((place for place, one in enumerate(seen) if one.success), None)
    needed = seen if first is None else seen[: first + 1]
    return Probe(first is not None, len(seen), sum(one.tokens for one in seen), sum(one.tokens for one in needed))


def probe_in_chunks(
    tasks: Sequence[Task], play: Play, name: str, *, waves: Sequence[int] = WAVES, chunk: int = 256
) -> Iterator[tuple[range, list[Probe]]]:
    """Probes a data set of any size, `chunk` tasks at a time; nothing of a chunk is kept but its results."""
    for start in range(0, len(tasks), chunk):
        places = range(start, min(start + chunk, len(tasks)))
        yield places, probe([tasks[place] for place in places], play, name, waves=waves)


def expected_rollouts(p: float, waves: Sequence[int] = WAVES) -> tuple[float, float]:
    """(rollouts of waves, rollouts of a sequential prober) that a task with success probability `p` costs on average.

    Waves: sum over waves w of w * (1-p)^(rollouts before). Sequential: (1 - (1-p)^n) / p with n = sum of waves; n for
    p = 0.
    """
    total, expected, before = sum(waves), 0.0, 0
    for wave in waves:
        expected += wave * (1 - p) ** before
        before += wave
    return expected, total if p == 0 else (1 - (1 - p) ** total) / p


@dataclass(slots=True)
class GrowerPlay:
    """A `Play` that grows chains with the current policy. The rollouts of a task share its prompt's cache.

    `temperature` is the paper's 0.7 by default; None takes the grower's own.
    """

    grower: Grower
    seed: int
    temperature: float | None = 0.7
    generated_tokens: int = 0

    def __call__(self, tasks: Sequence[Task], rollouts: int, name: str) -> list[list[Rollout]]:
        settings = self.grower.config.model_dump() | {
            "num_leaves": rollouts, "num_roots": rollouts, "criterion": "chain", "criterion_options": {},
            "fill_with_roots": False, "pad_groups": False, "candidates": 1,
        }  # fmt: skip
        if self.temperature is not None:
            settings["temperature"] = self.temperature
        config = RolloutConfig.model_validate(settings)
        grower = replace(self.grower, config=config, criterion=Chain(), stats=RolloutStats())
        results = []
        for tree in grower.grow(tasks, seed=self.seed, iteration=name):
            lengths = [sum(len(node.token_ids) for node in tree.responses(leaf)) for leaf in tree.leaves]
            results.append([Rollout(leaf.success, size) for leaf, size in zip(tree.leaves, lengths, strict=True)])
            self.generated_tokens += sum(lengths)
        return results
