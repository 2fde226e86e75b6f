"""A small OpenEnv environment with its client, and a server of it: python guessing_server.py PORT."""

from __future__ import annotations

import sys
from typing import Any

from openenv.core import EnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server import Environment, create_fastapi_app
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    word: str
    loud: bool = False


class Told(Observation):
    text: str = ""


class Guessing(Environment):
    """Guess the number of letters of the word."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._said: list[str] = []

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Told:
        self._said = []
        return Told(text=f"seed {seed}")

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Told:
        self._said.append(action.word.upper() if action.loud else action.word)
        is_over = action.word == "right"
        return Told(text=" ".join(self._said), done=is_over, reward=float(is_over))

    @property
    def state(self) -> State:
        return State(step_count=len(self._said))


class GuessingClient(EnvClient[Guess, Told, State]):
    """Say the right word."""

    def _step_payload(self, action: Guess) -> dict[str, Any]:
        return action.model_dump()

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[Told]:
        shown = Told.model_validate(payload.get("observation", {}))
        return StepResult(observation=shown, reward=payload.get("reward"), done=payload.get("done", False))

    def _parse_state(self, payload: dict[str, Any]) -> State:
        return State.model_validate(payload)


if __name__ == "__main__":
    import uvicorn

    app = create_fastapi_app(Guessing, Guess, Told, max_concurrent_envs=16)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
