"""A toy environment that does what its actions say, a tokenizer for it, and generators that play a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from firesteel.branching import make_criterion
from firesteel.config import RolloutConfig
from firesteel.context import ContextBuilder
from firesteel.environments.base import Environment
from firesteel.generators.mock import MockGenerator
from firesteel.models import train_tokenizer
from firesteel.prompts import format_step
from firesteel.rollout import Grower, derive_seed, tree_names
from firesteel.types import Observation, StepResult, Task

TEXTS = (
    "Reach the end.\nyou did: nothing",
    "you did: left right",
    format_step("explore", "which way", "left"),
    format_step("think", "go on", "right"),
    "go to desk 1. put the mug in cabinet 12. You see a shelf 3, and a drawer 2. Nothing happens.",
)


@dataclass
class Ledger:
    """What a set of toy environments went through."""

    opened: int = 0
    closed: int = 0
    resets: int = 0
    played: list[str] = field(default_factory=list)


class Toy(Environment):
    """Shows the actions so far. "win" and "lose" end the episode, "cut" truncates it.

    Actions "raise" and "hang" misbehave at once, "fork-raise" and "close-raise" later.
    """

    fork_rung: ClassVar[str] = "native"

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.actions: list[str] = []
        self.is_closed = False
        ledger.opened += 1

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        return [Task(f"{split}-{index}", split=split, seed=seed) for index in range(count or 2)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        self.goal = "Reach the end."
        self.ledger.resets += 1
        if self.ledger.resets in task.data.get("failing_resets", ()):
            raise OSError("no more handles")
        drift = f" {self.ledger.resets}" if self.ledger.resets in task.data.get("drifting_resets", ()) else ""
        return Observation(f"{task.id}: nothing{drift}")

    def step(self, action: str) -> StepResult:
        self.ledger.played.append(action)
        self.actions.append(action)
        if action == "raise":
            raise ValueError("no such lever")
        while action == "hang":
            pass
        return StepResult(
            Observation(f"you did: {' '.join(self.actions)}"),
            reward=float(action == "win"),
            terminated=action in ("win", "lose"),
            truncated=action == "cut",
            info={"success": action == "win"},
        )

    def fork(self) -> Toy:
        if self.actions[-1] == "fork-raise":
            raise OSError("cannot copy")
        twin = type(self)(self.ledger)
        twin.actions = list(self.actions)
        twin.goal = self.goal
        return twin

    def close(self) -> None:
        if not self.is_closed:
            self.ledger.closed += 1
        self.is_closed = True
        if "close-raise" in self.actions:
            raise OSError("stuck")


def think(action: str) -> str:
    """A response that goes on."""
    return format_step("think", "go on", action)


def explore(action: str) -> str:
    """A response that explores."""
    return format_step("explore", "which way", action)


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """A real trained tokenizer of 320 ids."""
    return train_tokenizer(TEXTS * 3, vocab_size=320)


@lru_cache(maxsize=4)
def builder(mode: str = "full") -> ContextBuilder:
    """Prompts for it; a window shows two past steps."""
    return ContextBuilder(tokenizer(), "compact", mode=mode, history_length=2)


def script(
    lines: Mapping[tuple[Any, ...], str], tasks: Sequence[Task], default: str = think("go"), *, seed: int = 0
) -> MockGenerator:
    """Plays `lines[task number, leaf, turn]` (a vote's draw may follow), else `default`, found by seeds."""
    names = tree_names(tasks)
    by_seed = {derive_seed(seed, 0, names[task], *where): text for (task, *where), text in lines.items()}
    return MockGenerator(
        lambda request, rng: builder().encode_response(by_seed.get(request.seed, default)), vocab_size=len(tokenizer())
    )


def grower(
    generator: Any, make_environment: Callable[[], Environment], *, mode: str = "full", **settings: Any
) -> Grower:
    """A grower of small trees (N = 4, M = 2, B = 2, K = 3 unless set) without a model."""
    limits = {name: settings.pop(name) for name in ("max_context", "step_timeout_s", "processes") if name in settings}
    defaults: dict[str, Any] = {"num_leaves": 4, "num_roots": 2, "width": 2, "max_turns": 3, "max_response_tokens": 60}
    config = RolloutConfig(**defaults | settings)
    criterion = make_criterion(config.criterion, config.width, config.criterion_options)
    return Grower(
        config, generator, builder(mode), criterion, make_environment, len(tokenizer()),
        **{"max_context": 2000, "step_timeout_s": 20.0} | limits,
    )  # fmt: skip
