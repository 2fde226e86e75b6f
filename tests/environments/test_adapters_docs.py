"""The page "Write an environment": its code runs, is as short as it says, and is played as it says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from toys import grower, script, think

from firesteel.environments import environment_class, make_environment
from firesteel.environments.adapters import adapt
from firesteel.environments.base import Environment
from firesteel.environments.pool import EnvironmentPool

PAGE = Path(__file__).resolve().parents[2] / "docs" / "write_an_environment.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
UP = '{"name": "turn", "arguments": {"direction": "up", "degrees": 3}}'


@pytest.fixture
def thermostat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Environment]]:
    """The page's class, from a file as a user has it."""
    (tmp_path / "thermostat.py").write_text(BLOCKS[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield environment_class("thermostat:Thermostat")
    sys.modules.pop("thermostat", None)
    adapt.cache_clear()


def test_the_class_has_twenty_lines_and_the_rest_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 20
    namespace: dict[str, object] = {"__name__": "thermostat_page"}
    for block in BLOCKS:
        exec(compile(block, PAGE.name, "exec", dont_inherit=True), namespace)
    assert "Thermostat: passed (contract, reset, step, fork)" in capsys.readouterr().out


def test_it_is_played_as_the_page_says(thermostat: type[Environment]) -> None:
    task = thermostat.tasks("train", count=6)[5]
    environment = thermostat()
    # 10 + 5 % 20 = 15 degrees; twice 3 more is 21.
    assert environment.reset(task, seed=task.seed).text == "It is 15 degrees."
    assert environment.goal == (
        "Bring the room to exactly 21 degrees, then leave.\n"
        'Call a tool with {"name": "...", "arguments": {...}}.\n'
        "- finish(): Ends the episode.\n"
        "- turn(direction: Literal['up', 'down'], degrees: int = 1): Changes the temperature. direction: where to "
        "degrees: how far, at least 1\n"
        "- leave(): Says that the room is right."
    )
    environment.step(UP)
    fork = environment.fork()
    assert fork.step('{"name": "leave"}').reward == 0.0
    assert environment.step(UP).observation.text == "It is 21 degrees."
    last = environment.step('{"name": "leave"}')
    assert (last.reward, last.terminated, last.info) == (1.0, True, {"success": True, "score": 1.0, "valid": True})


def test_trees_grow_in_it_and_in_a_pool_of_it(thermostat: type[Environment]) -> None:
    (task,) = thermostat.tasks("train", count=6)[5:]
    lines = {(0, leaf, turn): think(UP) for leaf in (0, 1) for turn in (0, 1)} | {(0, 0, 2): think('{"name": "leave"}')}
    trees = []
    with EnvironmentPool(
        partial(make_environment, "thermostat:Thermostat", {}), workers=1, step_timeout_s=120.0
    ) as pool:
        for make in (thermostat, pool.make):
            growing = grower(script(lines, [task], think("talk")), make, max_context=4000, max_response_tokens=200)
            trees += growing.grow([task], seed=0)
    assert trees[0].to_dict() == trees[1].to_dict()
    assert [(leaf.success, leaf.status) for leaf in trees[0].leaves] == [(True, "finished"), (False, "truncated")]
    assert "This is no tool call" in json.dumps(trees[0].to_dict())
