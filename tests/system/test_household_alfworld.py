"""The household against ALFWorld's own engine: exported games play the same and are won by the same actions."""

import re
import sys

import pytest

from firesteel.environments.household import Household
from firesteel.environments.household.export import write_alfworld
from firesteel.environments.household.generate import UNSEEN_KIND
from firesteel.environments.household.vocabulary import KINDS
from firesteel.types import Observation, Task

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Starts ALFWorld's engine on a game file. Its PDDL translator overwrites sys.argv, which is put back."""
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "alfworld"))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    textworld = pytest.importorskip("textworld", reason="needs ALFWorld: tools/install_alfworld.sh PYTHON")
    alfworld = pytest.importorskip(
        "alfworld.agents.environment.alfred_tw_env", reason="needs ALFWorld: tools/install_alfworld.sh PYTHON"
    )
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    return lambda path: textworld.start(str(path), infos, wrappers=[alfworld.AlfredDemangler()])


def first_of_kind(kind: str, size: str) -> Task:
    split = "l2" if kind == UNSEEN_KIND else "train"
    return next(task for task in Household.tasks(split, count=10, seed=5, size=size) if task.kind == kind)


def named_things(text: str) -> list[str]:
    """The numbered names of a text; the engine lists the contents of a place in an order of its own."""
    return sorted(re.findall(r"[a-z]+ \d+", text))


def same_commands(admissible: list[str], observation: Observation) -> bool:
    """Whether both list the same commands; the household has no `help` and no slicing."""
    return {c for c in admissible if c != "help" and not c.startswith("slice")} == set(observation.admissible or ())


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_wins_the_exported_game(engine, kind, size, tmp_path):
    env = Household(size=size)
    observation = env.reset(first_of_kind(kind, size), seed=0)
    game = engine(write_alfworld(env, tmp_path / "game"))
    state = game.reset()
    assert env.goal in state.feedback
    assert named_things(state.feedback.partition("Your task")[0]) == named_things(observation.text)
    done = False
    while (step := env.expert()) is not None:
        assert same_commands(state["admissible_commands"], observation)
        assert not done
        state, _, done = game.step(step.action)
        result = env.step(step.action)
        observation = result.observation
        assert state.feedback.partition("you see")[0] == observation.text.partition("you see")[0]
        assert named_things(state.feedback) == named_things(observation.text)
        assert done == state["won"] == result.terminated
    assert done


def test_what_does_not_work_here_does_not_work_there(engine, tmp_path):
    env = Household(size="small")
    env.reset(first_of_kind("pick_heat_then_place_in_recep", "small"), seed=0)
    game = engine(write_alfworld(env, tmp_path / "game"))
    game.reset()
    script = [
        "go to fridge 1",
        "go to fridge 1",
        "open fridge 1",
        "open fridge 1",
        "open microwave 1",
        "examine fridge 1",
        "close fridge 1",
        "close fridge 1",
        "heat fridge 1 with microwave 1",
        "inventory",
        "look",
    ]
    for action in script:
        state, _, _ = game.step(action)
        assert state.feedback.partition("you see")[0] == env.step(action).observation.text.partition("you see")[0]
