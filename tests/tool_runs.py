"""Small runs on tool-calling tasks: a random model, and environments in which random text sometimes succeeds."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from firesteel.config import Config
from firesteel.environments.tool_calls import ToolCalls
from firesteel.models import build_tiny_model, train_tokenizer
from firesteel.tree import Episode
from firesteel.types import StepResult

TEXTS = ["Tools:\nbook_train(city: string, day: string)\nQuery: book train in oslo on monday"] * 5


def distinct_letters(episode: Episode) -> float:
    """A reward that random text earns unevenly."""
    return float(len(set(episode.steps[-1].text)))


class Lottery(ToolCalls):
    """Any answer is right whose checksum can be divided by 5: about a fifth of all texts, whatever the task."""

    def step(self, action: str) -> StepResult:
        return self._result(super().step(action), zlib.crc32(action.encode()) % 5 == 0)

    @staticmethod
    def _result(result: StepResult, success: bool) -> StepResult:
        info = {"success": success, "score": float(success), "valid": True}
        return StepResult(result.observation, float(success), terminated=True, info=info)


class Varied(Lottery):
    """Any answer of at least four different characters is right: a broken policy repeats itself and fails."""

    def step(self, action: str) -> StepResult:
        return self._result(ToolCalls.step(self, action), len(set(action)) >= 4)


def random_model(folder: Path) -> Path:
    """The directory of a random model of some 20,000 parameters with its tokenizer."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    model = build_tiny_model(tokenizer, seed=0, hidden=16, layers=1, heads=2, kv_heads=1, max_context=1024)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tool_config(model: Path, runs_dir: Path, *changes: dict[str, Any]) -> Config:
    """Four updates on three tasks each, of four one-step episodes."""
    return Config.build(
        {
            "name": "tools", "runs_dir": str(runs_dir), "steps": 4, "tasks_per_step": 3, "save_every": 1,
            "model": {"path": str(model)},
            "environment": {
                "name": "tool_runs:Lottery", "num_tasks": 12,
                "options": {"terse": True, "schemas": "signature", "num_tools": 6},
            },
            "context": {"prompts": "tool_calls"},
            "rollout": {
                "criterion": "chain", "num_leaves": 4, "num_roots": 4, "max_turns": 1, "max_response_tokens": 8,
            },
            "learner": {"lr": 1e-3},
            "reward": {"name": "tool_runs:distinct_letters"},
        },
        *changes,
    )  # fmt: skip
