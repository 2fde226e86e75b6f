"""Classes that know nothing of firesteel, as users have them."""

from __future__ import annotations

import random
from typing import Any, Literal

import gymnasium


class Counter:
    """Count up to the number that you were told."""

    def __init__(self, step: int = 1) -> None:
        self._step = step
        self.reward = 0.0
        self.done = False

    def reset(self, **kwargs: Any) -> str | None:
        self._count, self.reward, self.done = 0, 0.0, False
        self._goal = kwargs.get("target", random.Random(kwargs["seed"]).randrange(2, 5))
        return f"Count to {self._goal}."

    def add(self, amount: int, how: Literal["up", "down"] = "up") -> str:
        """
        Changes the count.

        Args:
            amount: by how much
            how: in which direction
        """
        if amount < 0:
            raise ValueError("amount must not be negative")
        self._count += amount * self._step * (1 if how == "up" else -1)
        return f"The count is {self._count}."

    def submit(self) -> None:
        """Says that the count is right."""
        self.done = True
        self.reward = float(self._count == self._goal)


class Notes:
    """Keep notes."""

    fork_rung = "native"

    def __init__(self) -> None:
        self._notes: list[str] = []

    @staticmethod
    def tasks(split: str) -> list[dict[str, Any]]:
        return [{"id": f"{split}-notes", "prompt": [{"role": "user", "content": "Write three notes."}]}]

    def write(self, text: str) -> list[str]:
        """Adds a note and shows all."""
        self._notes.append(text)
        return self._notes

    def get_reward(self) -> float:
        return len(self._notes) / 3


class Echo(gymnasium.Env):
    """Say the word."""

    observation_space = gymnasium.spaces.Text(100)
    action_space = gymnasium.spaces.Text(5, charset="abc")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._word = "".join(self.np_random.choice(list("abc"), 3))
        return f"The word is {self._word}.", {"admissible": ["abc", self._word]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        is_right = action == self._word
        return f"You said {action}.", float(is_right), is_right, False, {}


class Grid(Echo):
    action_space = gymnasium.spaces.Discrete(4)


def make_counter() -> Counter:
    return Counter(step=2)
