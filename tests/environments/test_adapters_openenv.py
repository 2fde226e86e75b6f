"""OpenEnv clients, played as they are: a real server where the package is installed, else a client of that shape."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, ConfigDict

from firesteel.environments.adapters import adapt
from firesteel.environments.check import check_environment
from firesteel.errors import ConfigError, EnvironmentFailed
from firesteel.types import Task

ActT = TypeVar("ActT")


class Guess(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: str
    loud: bool = False


@dataclass
class Result:
    observation: Any
    reward: float | None = None
    done: bool = False


class Client(Generic[ActT]):
    def _step_payload(self, action: ActT) -> dict[str, Any]:
        raise NotImplementedError

    def _parse_result(self, payload: dict[str, Any]) -> Result:
        raise NotImplementedError


class SpeakingClient(Client[Guess]):
    """Say the right word."""

    def __init__(self, base_url: str, shout: bool = False) -> None:
        self.base_url, self.shout = base_url, shout

    def reset(self, **options: Any) -> Result:
        self.said: list[str] = []
        return Result({"text": f"seed {options['seed']}", "done": False, "metadata": {}})

    def step(self, action: Guess) -> Result:
        self.said.append(action.word.upper() if action.loud or self.shout else action.word)
        return Result({"text": " ".join(self.said), "count": len(self.said)}, None, action.word == "right")

    def close(self) -> None: ...


class RawClient(SpeakingClient):
    """Takes dictionaries."""

    __orig_bases__ = (Client[dict[str, Any]],)

    def step(self, action: Any) -> Result:
        return Result({"echo": action, "size": 1}, 1.0, True)


def test_a_client_is_played_as_it_is():
    environment = adapt(SpeakingClient)(base_url="here")
    assert environment.reset(Task("t"), seed=7).text == "seed 7"
    assert environment.goal == "Say the right word."
    # A text fills the only required text field; JSON gives all of them; what fits no field is answered.
    texts = [environment.step(action).observation.text for action in ("one", '{"word": "two", "loud": true}')]
    assert texts == ["one", "one TWO"]
    wrong = environment.step('{"words": "two"}')
    assert (
        wrong.observation.text.startswith("That is no action here: ")
        and "word Field required" in wrong.observation.text
    )
    assert wrong.info == {"valid": False}
    fork = environment.fork()
    assert fork.origin.replayed_steps == 3
    assert environment.step("right").terminated
    assert fork.step("left").observation.text == "one TWO left"
    with pytest.raises(EnvironmentFailed, match="SpeakingClient: stepped before a reset or after the end"):
        environment.step("right")


def test_options_name_the_shown_field_and_go_to_the_client():
    environment = adapt(SpeakingClient)(base_url="here", observation_field="count", shout=True, goal="Speak up.")
    environment.reset(Task("t"), seed=0)
    assert environment.step("one").observation.text == "1"
    assert (environment.goal, environment._client.said) == ("Speak up.", ["ONE"])


def test_a_client_of_dictionaries_gets_dictionaries():
    environment = adapt(RawClient)(base_url="here")
    environment.reset(Task("t"), seed=0)
    assert environment.step("hello").observation.text == "That is no action here: wanted a JSON object"
    last = environment.step('{"x": 1}')
    assert json.loads(last.observation.text) == {"echo": {"x": 1}, "size": 1}
    assert (last.reward, last.info["success"], last.info["score"]) == (1.0, True, 1.0)


def test_a_client_that_is_only_async_is_refused():
    class Waiting(SpeakingClient):
        async def step(self, action: Any) -> Result:  # type: ignore[override]
            return Result("")

    with pytest.raises(
        ConfigError, match="Waiting: its step is async and it has no sync\\(\\); wrap it in a plain one"
    ):
        adapt(Waiting)(base_url="here")


@pytest.fixture
def server() -> Iterator[str]:
    pytest.importorskip("openenv")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = Path(__file__).with_name("guessing_server.py")
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(path), str(port)], env=surroundings)
    try:
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.system
def test_a_real_server_is_played_and_forked(server):
    from guessing_server import GuessingClient

    cls = adapt(GuessingClient)

    def make() -> Any:
        return cls(base_url=server)

    environment = make()
    assert environment.reset(Task("t"), seed=7).text == "seed 7"
    assert environment.step("one").observation.text == "one"
    fork = environment.fork()
    assert fork.step('{"word": "two", "loud": true}').observation.text == "one TWO"
    last = environment.step("right")
    assert (last.reward, last.terminated, last.info["success"]) == (1.0, True, True)
    for each in (environment, fork):
        each.close()
    report = check_environment(make, cls.tasks("train", count=1), actions=["one", "two"], episodes=1, steps=3)
    assert report.fork_rung == "replay"
