"""The household's expert: it wins every game, knows only what was shown, and marks open decisions."""

import random

import pytest

from firesteel.environments.household import Household
from firesteel.environments.household.environment import game_of
from firesteel.environments.household.expert import best_destination, next_step, solve
from firesteel.environments.household.generate import SPLITS
from firesteel.environments.household.world import Game, Goal, Layout, World
from firesteel.types import ExpertStep

SIZES = ("small", "full")

KITCHEN = Layout(
    "test-kitchen",
    "kitchen",
    ("cabinet", "cabinet", "countertop", "fridge", "microwave", "sinkbasin"),
)


def kitchen_world(kind: str, object_type: str, destination: str, **starts: tuple[int, ...]) -> World:
    """A world in KITCHEN; `starts` gives the receptacle index of every object of a type."""
    things = [(name, place) for name, places in starts.items() for place in places]
    goal = Goal(kind, object_type, destination, "test")
    return World(Game(KITCHEN, tuple(name for name, _ in things), tuple(place for _, place in things), goal))


def play(world: World, *commands: str) -> list[str | None]:
    return [world.act(command) for command in commands]


def expert_episode(env: Household) -> list[ExpertStep]:
    """Plays the expert to the end; every action is listed as admissible before it is played."""
    steps = []
    admissible = env.step("inventory").observation.admissible
    while (step := env.expert()) is not None:
        assert step.action in admissible
        assert 1 <= len(step.reason.split()) <= 7
        assert step.reason == step.reason.lower()
        result = env.step(step.action)
        admissible = result.observation.admissible
        steps.append(step)
        assert len(steps) <= 120
    assert result.info["success"]
    return steps


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("split", list(SPLITS))
def test_the_expert_wins_every_game(split, size):
    env = Household(size=size)
    lengths = []
    for task in Household.tasks(split, count=60, size=size):
        env.reset(task, seed=0)
        lengths.append(len(expert_episode(env)))
    assert max(lengths) <= (50 if size == "full" else 25)
    if size == "small":
        assert sum(length <= 20 for length in lengths) >= 0.95 * len(lengths)


@pytest.mark.parametrize("size", SIZES)
def test_the_expert_wins_after_random_actions_and_in_forks(size):
    rng = random.Random(11)
    for split in SPLITS:
        for task in Household.tasks(split, count=15, size=size):
            env = Household(size=size)
            observation = env.reset(task, seed=0)
            for _ in range(25):
                action = rng.choice(observation.admissible)
                probe = env.fork()
                if probe.step(action).terminated:
                    break
                observation = env.step(action).observation
            expert_episode(env.fork())
            expert_episode(env)


def test_the_expert_uses_only_what_was_shown():
    """Moving things between receptacles that were never looked into changes none of its steps."""
    world = kitchen_world("pick_and_place_simple", "egg", "countertop", egg=(3,), mug=(2, 0))
    other = kitchen_world("pick_and_place_simple", "egg", "countertop", egg=(5,), mug=(2, 1))
    for step in range(2):
        assert next_step(world) == next_step(other), step
        action = next_step(world).action
        assert (world.act(action) == other.act(action)) == (step == 0)


def test_the_expert_does_not_swap_two_targets_between_two_receptacles():
    world = kitchen_world("pick_two_obj_and_place", "mug", "cabinet", mug=(0, 1))
    play(world, "go to cabinet 1", "open cabinet 1", "go to cabinet 2", "open cabinet 2")
    assert best_destination(world) == 0
    actions = []
    while (step := next_step(world)) is not None:
        actions.append(step.action)
        world.act(step.action)
        assert len(actions) < 10
    assert actions == ["take mug 2 from cabinet 2", "go to cabinet 1", "move mug 2 to cabinet 1"]


def test_the_expert_puts_away_what_is_in_the_way():
    world = kitchen_world("pick_and_place_simple", "mug", "cabinet", mug=(2,), knife=(2,))
    play(world, "go to countertop 1", "take knife 1 from countertop 1", "go to fridge 1")
    assert next_step(world) == ExpertStep("go to countertop 1", False, "put knife away")


def test_explore_marks_open_search_decisions_only():
    world = kitchen_world("pick_and_place_simple", "cup", "countertop", cup=(5,), mug=(2,))
    steps = []
    while (step := next_step(world)) is not None:
        steps.append(step)
        world.act(step.action)
    # Usual for a cup: countertop (one member, so first) and cabinet; then sinkbasin, the only other place here.
    assert steps == [
        ExpertStep("go to countertop 1", True, "find cup"),
        ExpertStep("go to cabinet 1", False, "the cup is not here"),
        ExpertStep("open cabinet 1", False, "look for cup"),
        ExpertStep("go to cabinet 2", False, "the cup is not here"),
        ExpertStep("open cabinet 2", False, "look for cup"),
        ExpertStep("go to sinkbasin 1", True, "the cup is not here"),
        ExpertStep("take cup 1 from sinkbasin 1", False, "the cup 1 is here"),
        ExpertStep("go to countertop 1", False, "place cup in countertop"),
        ExpertStep("move cup 1 to countertop 1", False, "place cup in countertop"),
    ]


def explore_rates(size: str) -> tuple[list[float], set[bool]]:
    """The explore rate in steps 1-5, 6-15 and 16 on, and the flags of first steps."""
    explored, counted, first = [0, 0, 0], [0, 0, 0], set()
    for task in Household.tasks("train", count=400, size=size):
        for index, step in enumerate(solve(game_of(task), limit=50)):
            interval = 0 if index < 5 else 1 if index < 15 else 2
            explored[interval] += step.explore
            counted[interval] += 1
            if index == 0:
                first.add(step.explore)
    return [a / b if b else 0.0 for a, b in zip(explored, counted, strict=True)], first


@pytest.mark.parametrize("size", SIZES)
def test_the_explore_rate_falls_and_is_no_function_of_the_step(size):
    (early, middle, late), first = explore_rates(size)
    assert first == {True, False}
    assert 0.15 < early < 0.30
    assert 0.02 < middle < 0.15
    assert late < early
