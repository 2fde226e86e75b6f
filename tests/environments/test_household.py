"""The household: rules by hand, splits, determinism and forks."""

import collections
import os
import random
import subprocess
import sys

import pytest

from firesteel.environments import environment_class
from firesteel.environments.base import observation_hash
from firesteel.environments.household import Household
from firesteel.environments.household.environment import game_of
from firesteel.environments.household.generate import SPLITS, UNSEEN_KIND, bucket, layouts
from firesteel.environments.household.vocabulary import (
    KINDS,
    NUM_OBJECTS,
    NUM_RECEPTACLES,
    OBJECTS,
    OPENABLE,
    ROOMS,
)
from firesteel.environments.household.world import MIDDLE, Game, Goal, Layout, World, enumerate_names, number_names
from firesteel.errors import ConfigError, EnvironmentFailed, TaskError
from firesteel.types import Task

SIZES = ("small", "full")

KITCHEN = Layout(
    "test-kitchen",
    "kitchen",
    ("cabinet", "cabinet", "countertop", "fridge", "microwave", "sinkbasin"),
)
BEDROOM = Layout("test-bedroom", "bedroom", ("bed", "desk", "drawer"))


def kitchen_world(kind: str, object_type: str, destination: str, **starts: tuple[int, ...]) -> World:
    """A world in KITCHEN; `starts` gives the receptacle index of every object of a type."""
    things = [(name, place) for name, places in starts.items() for place in places]
    goal = Goal(kind, object_type, destination, "test")
    return World(Game(KITCHEN, tuple(name for name, _ in things), tuple(place for _, place in things), goal))


def play(world: World, *commands: str) -> list[str | None]:
    return [world.act(command) for command in commands]


def test_names_are_numbered_per_type():
    assert number_names(("mug", "pen", "mug")) == ("mug 1", "pen 1", "mug 2")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "nothing"),
        (["mug 1"], "a mug 1"),
        (["mug 1", "pen 2"], "a mug 1, and a pen 2"),
        (["a 1", "b 1", "c 1"], "a a 1, a b 1, and a c 1"),
    ],
)
def test_lists_read_as_in_alfworld(names, text):
    assert enumerate_names(names) == text


def test_the_start_of_a_world():
    world = kitchen_world("pick_and_place_simple", "mug", "cabinet", mug=(2,))
    assert (world.place, world.holding, world.seen, world.opened) == (MIDDLE, None, frozenset(), frozenset())


def test_heat_and_place_by_hand():
    world = kitchen_world("pick_heat_then_place_in_recep", "mug", "cabinet", mug=(2,), apple=(2, 3))
    assert world.game.layout.overview == (
        "You are in the middle of a room. Looking quickly around you, you see "
        "a cabinet 1, a cabinet 2, a countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1."
    )
    texts = play(world, "look", "go to countertop 1", "take mug 1 from countertop 1", "inventory", "examine mug 1")
    assert texts == [
        world.game.layout.overview,
        "You arrive at countertop 1. On the countertop 1, you see a mug 1, and a apple 1.",
        "You pick up the mug 1 from the countertop 1.",
        "You are carrying: a mug 1.",
        "There's nothing special about mug 1.",
    ]
    assert world.progress() == 0.0
    texts = play(world, "go to microwave 1", "heat mug 1 with microwave 1", "examine mug 1")
    assert texts == [
        "You arrive at microwave 1. The microwave 1 is closed.",
        "You heat the mug 1 using the microwave 1.",
        "This is a hot mug 1.",
    ]
    assert world.progress() == 0.5
    texts = play(world, "go to cabinet 1", "move mug 1 to cabinet 1", "open cabinet 1", "move mug 1 to cabinet 1")
    assert texts == [
        "You arrive at cabinet 1. The cabinet 1 is closed.",
        None,
        "You open the cabinet 1. The cabinet 1 is open. In it, you see nothing.",
        "You move the mug 1 to the cabinet 1.",
    ]
    assert world.progress() == 1.0
    texts = play(world, "examine cabinet 1", "close cabinet 1", "take mug 1 from cabinet 1", "inventory", "look")
    assert texts == [
        "The cabinet 1 is open. In it, you see a mug 1.",
        "You close the cabinet 1.",
        None,
        "You are not carrying anything.",
        "You are facing the cabinet 1. Next to it, you see nothing.",
    ]


def test_placing_an_untreated_object_is_half_the_goal():
    world = kitchen_world("pick_clean_then_place_in_recep", "mug", "countertop", mug=(0,))
    play(world, "go to cabinet 1", "open cabinet 1", "take mug 1 from cabinet 1")
    play(world, "go to countertop 1", "move mug 1 to countertop 1")
    assert world.progress() == 0.5


def test_two_objects_must_share_a_destination():
    world = kitchen_world("pick_two_obj_and_place", "mug", "cabinet", mug=(2, 2))
    play(world, "go to cabinet 1", "open cabinet 1", "go to cabinet 2", "open cabinet 2")
    play(world, "go to countertop 1", "take mug 1 from countertop 1", "go to cabinet 1", "move mug 1 to cabinet 1")
    assert world.progress() == 0.5
    play(world, "go to countertop 1", "take mug 2 from countertop 1", "go to cabinet 2", "move mug 2 to cabinet 2")
    assert world.progress() == 0.5
    play(world, "take mug 2 from cabinet 2", "go to cabinet 1", "move mug 2 to cabinet 1")
    assert world.progress() == 1.0


def test_cooling_undoes_heating_but_not_cleaning():
    world = kitchen_world("pick_heat_then_place_in_recep", "mug", "cabinet", mug=(2,))
    play(
        world, "go to countertop 1", "take mug 1 from countertop 1", "go to sinkbasin 1", "clean mug 1 with sinkbasin 1"
    )
    play(world, "go to microwave 1", "heat mug 1 with microwave 1")
    assert world.act("examine mug 1") == "This is a hot and clean mug 1."
    play(world, "go to fridge 1", "cool mug 1 with fridge 1")
    assert world.act("examine mug 1") == "This is a cool and clean mug 1."
    assert world.progress() == 0.0


def bedroom_world() -> World:
    goal = Goal("look_at_obj_in_light", "pen", "", "test")
    return World(Game(BEDROOM, ("desklamp", "pen", "book"), (1, 2, 0), goal))


def test_look_is_won_where_the_lamp_is_in_either_order():
    world = bedroom_world()
    texts = play(world, "go to desk 1", "take desklamp 1 from desk 1", "examine desklamp 1", "use desklamp 1")
    assert texts[1:] == [None, None, "You turn on the desklamp 1."]
    assert world.progress() == 0.5
    play(world, "go to drawer 1", "open drawer 1", "take pen 1 from drawer 1")
    assert world.progress() == 0.5
    play(world, "go to desk 1")
    assert world.progress() == 1.0
    world = bedroom_world()
    play(world, "go to drawer 1", "open drawer 1", "take pen 1 from drawer 1", "go to desk 1")
    assert world.progress() == 0.5
    play(world, "use desklamp 1")
    assert world.progress() == 1.0


@pytest.mark.parametrize(
    "command",
    [
        "",
        "dance",
        "go to attic 1",
        "go countertop 1",
        "go to countertop 1",
        "look around",
        "inventory now",
        "open countertop 1",
        "open fridge 1",
        "close countertop 1",
        "take apple 2 from fridge 1",
        "take apple 2 from countertop 1",
        "take knife 1 from countertop 1",
        "take pan 7 from countertop 1",
        "move mug 1 to sinkbasin 1",
        "move mug 1 to fridge 1",
        "move apple 1 to countertop 1",
        "heat mug 1 with microwave 1",
        "clean mug 1 with sinkbasin 1",
        "cool mug 1 with countertop 1",
        "use mug 1",
        "use desklamp 1",
        "examine apple 2",
        "examine knife 1",
        "examine fridge 1",
        "help",
    ],
)
def test_inapplicable_commands_change_nothing(command):
    world = kitchen_world("pick_and_place_simple", "mug", "cabinet", mug=(2,), knife=(2,), apple=(2, 3))
    play(world, "go to countertop 1", "take mug 1 from countertop 1")
    before = (world.place, world.holding, list(world.where), world.opened, world.seen, world.treated, world.toggled)
    assert world.act(command) is None
    after = (world.place, world.holding, list(world.where), world.opened, world.seen, world.treated, world.toggled)
    assert after == before


def test_an_object_is_not_put_where_it_does_not_fit():
    world = kitchen_world("pick_and_place_simple", "mug", "cabinet", knife=(2,), mug=(2,))
    play(world, "go to countertop 1", "take knife 1 from countertop 1", "go to fridge 1", "open fridge 1")
    assert "fridge" not in OBJECTS["knife"].fits
    assert world.act("move knife 1 to fridge 1") is None


def test_commands_by_hand():
    world = kitchen_world("pick_and_place_simple", "mug", "cabinet", mug=(2,), apple=(3,))
    assert world.commands() == (
        *(f"go to {name}" for name in KITCHEN.names),
        "inventory",
        "look",
    )
    play(world, "go to countertop 1", "take mug 1 from countertop 1", "go to fridge 1")
    others = tuple(f"go to {name}" for name in KITCHEN.names if name != "fridge 1")
    assert world.commands() == (
        "cool mug 1 with fridge 1",
        "examine mug 1",
        "examine fridge 1",
        *others,
        "inventory",
        "look",
        "open fridge 1",
    )
    play(world, "open fridge 1")
    assert world.commands() == (
        "close fridge 1",
        "cool mug 1 with fridge 1",
        "examine mug 1",
        "examine fridge 1",
        *others,
        "inventory",
        "look",
        "move mug 1 to fridge 1",
    )
    play(world, "move mug 1 to fridge 1")
    assert world.commands()[-2:] == ("take mug 1 from fridge 1", "take apple 1 from fridge 1")


def test_lamps_are_used_and_never_taken():
    world = bedroom_world()
    world.act("go to desk 1")
    assert world.commands() == (
        "examine desk 1",
        "go to bed 1",
        "go to drawer 1",
        "inventory",
        "look",
        "use desklamp 1",
    )


def every_command(game: Game) -> set[str]:
    """All sentences of the grammar over the names of a game."""
    places, things = game.layout.names, game.names
    result = {"look", "inventory"}
    for name in places:
        result |= {f"{verb} {name}" for verb in ("go to", "open", "close", "examine")}
    for name in things:
        result |= {f"use {name}", f"examine {name}"}
        for place in places:
            result |= {f"take {name} from {place}", f"move {name} to {place}"}
            result |= {f"{verb} {name} with {place}" for verb in ("clean", "heat", "cool")}
    return result


@pytest.mark.parametrize("size", SIZES)
def test_the_listed_commands_are_exactly_those_that_work(size):
    rng = random.Random(0)
    for task in Household.tasks("train", count=5, seed=3, size=size):
        world = World(game_of(task))
        for _ in range(12):
            listed = world.commands()
            assert len(set(listed)) == len(listed)
            assert set(listed) == {c for c in every_command(world.game) if world.copy().act(c) is not None}
            assert list(dict.fromkeys(c.split()[0] for c in listed)) == sorted({c.split()[0] for c in listed})
            world.act(rng.choice(listed))


# The environment.


def some_task(size: str = "small", split: str = "train", index: int = 0) -> Task:
    return Household.tasks(split, count=index + 1, size=size)[index]


def test_it_is_the_environment_of_that_name():
    assert environment_class("household") is Household
    assert Household.fork_rung == "native"


def test_an_episode_ends_with_reward_one_at_the_goal():
    env = Household(size="small")
    env.reset(some_task(), seed=0)
    rewards = []
    while (step := env.expert()) is not None:
        result = env.step(step.action)
        rewards.append(result.reward)
        assert result.info["valid"] is True
        assert set(result.info) == {"success", "score", "valid"}
        assert result.terminated == result.info["success"] == (result.info["score"] == 1.0)
        assert not result.truncated
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    with pytest.raises(EnvironmentFailed, match="reset"):
        env.step("look")


def test_nothing_happens_is_a_normal_step():
    env = Household(size="small")
    first = env.reset(some_task(), seed=0)
    result = env.step("eat the lamp")
    assert result.observation.text == "Nothing happens."
    assert result.observation.admissible == first.admissible
    assert (result.reward, result.terminated) == (0.0, False)
    assert result.info == {"success": False, "score": 0.0, "valid": False}


def test_case_and_outer_spaces_do_not_matter():
    env = Household(size="small")
    env.reset(some_task(), seed=0)
    assert env.step("  Look\n").info["valid"]


def test_the_first_observation_holds_the_room_and_goal_the_task():
    env = Household(size="small")
    observation = env.reset(some_task(), seed=0)
    assert observation.text.startswith("You are in the middle of a room. Looking quickly around you, you see a ")
    assert env.goal
    assert env.goal not in observation.text


def test_admissible_can_be_left_out():
    env = Household(size="small", admissible=False)
    assert env.reset(some_task(), seed=0).admissible is None
    assert env.step("look").observation.admissible is None


def test_stepping_before_reset_is_an_error():
    env = Household()
    with pytest.raises(EnvironmentFailed, match="reset"):
        env.step("look")
    with pytest.raises(EnvironmentFailed, match="reset"):
        env.expert()


@pytest.mark.parametrize("size", SIZES)
def test_a_fork_and_its_parent_are_independent_and_equal(size):
    rng = random.Random(7)
    for task in Household.tasks("l1", count=4, size=size):
        parent = Household(size=size)
        observation = parent.reset(task, seed=0)
        for _ in range(6):
            observation = parent.step(rng.choice(observation.admissible)).observation
        child, untouched = parent.fork(), parent.fork()
        assert (child.goal, child.expert()) == (parent.goal, parent.expert())
        actions = []
        child_hashes = []
        for _ in range(8):
            actions.append(rng.choice(observation.admissible))
            observation = child.step(actions[-1]).observation
            child_hashes.append(observation_hash(observation))
        child.close()
        assert [observation_hash(parent.step(action).observation) for action in actions] == child_hashes
        assert [observation_hash(untouched.step(action).observation) for action in actions] == child_hashes


# Tasks and splits.


def test_splits_have_their_default_counts():
    counts = {split: len(Household.tasks(split)) for split in SPLITS}
    assert counts == {"train": 2000, "validation": 200, "l0": 500, "l1": 500, "l2": 200}


def test_fewer_tasks_are_a_prefix_and_seeds_differ():
    more = Household.tasks("train", count=23, size="small")
    assert list(Household.tasks("train", count=9, size="small")) == list(more[:9])
    other = Household.tasks("train", count=23, seed=1, size="small")
    assert not {task.id for task in more} & {task.id for task in other}
    assert game_of(more[0]).signature != game_of(other[0]).signature


def test_kinds_come_in_equal_shares():
    kinds = collections.Counter(task.kind for task in Household.tasks("train", count=100))
    assert kinds == {kind: 20 for kind in KINDS if kind != UNSEEN_KIND}
    assert {task.kind for task in Household.tasks("l2")} == {UNSEEN_KIND}


def test_a_task_holds_only_plain_numbers_and_names():
    for task in Household.tasks("l1", count=5, size="small"):
        assert set(task.data) == {"size", "split", "seed", "index"}
        assert all(isinstance(value, str | int) for value in task.data.values())


def test_wrong_names_are_refused_with_the_known_ones():
    with pytest.raises(TaskError, match=r"did you mean 'validation'.*train, validation, l0, l1, l2"):
        Household.tasks("validaton")
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        Household.tasks("train", sise="small")
    with pytest.raises(ConfigError, match="'huge'"):
        Household.tasks("train", size="huge")
    with pytest.raises(ConfigError, match="'huge'"):
        Household(size="huge")
    with pytest.raises(TaskError, match="-1"):
        Household.tasks("train", count=-1)
    with pytest.raises(TaskError, match="size 'small', this Household 'full'"):
        Household(size="full").reset(some_task("small"), seed=0)
    with pytest.raises(TaskError, match="not a household task"):
        Household().reset(Task(id="boil-3"), seed=0)
    with pytest.raises(TaskError, match="kind 'dance'"):
        Household().reset(Task(id="x", kind="dance", data=some_task().data), seed=0)


@pytest.mark.parametrize("size", SIZES)
def test_no_layout_is_in_both_pools(size):
    seen, unseen = ({layout.types for layout in layouts(size, pool)} for pool in ("seen", "unseen"))
    assert len(seen) == len(layouts(size, "seen"))
    assert len(unseen) == len(layouts(size, "unseen"))
    assert not seen & unseen
    for types in seen | unseen:
        assert NUM_RECEPTACLES[size][0] <= len(types) <= NUM_RECEPTACLES[size][1]


def relabelled(game: Game) -> tuple[object, ...]:
    """A game's identity, written independently of `Game.signature`."""
    where = collections.Counter(
        (name, game.layout.names[place]) for name, place in zip(game.object_types, game.starts, strict=True)
    )
    goal = (game.goal.kind, game.goal.object_type, game.goal.destination)
    return (game.layout.names, frozenset(where.items()), goal)


@pytest.mark.parametrize("size", SIZES)
def test_splits_share_no_game(size):
    split_of: dict[tuple[object, ...], str] = {}
    for split in SPLITS:
        for task in Household.tasks(split, count=200, size=size):
            game = game_of(task)
            assert bucket(game) in SPLITS[split].buckets
            assert game.layout in layouts(size, SPLITS[split].layouts)
            assert split_of.setdefault(relabelled(game), split) == split
    assert not SPLITS["train"].buckets & SPLITS["l0"].buckets
    assert not SPLITS["train"].buckets & SPLITS["validation"].buckets
    assert not SPLITS["validation"].buckets & SPLITS["l0"].buckets


@pytest.mark.parametrize("size", SIZES)
def test_games_keep_the_tables(size):
    for split in SPLITS:
        for task in Household.tasks(split, count=40, size=size):
            game = game_of(task)
            assert NUM_OBJECTS[size][0] <= len(game.object_types) <= NUM_OBJECTS[size][1]
            assert game.goal.kind == task.kind
            for name, place in zip(game.object_types, game.starts, strict=True):
                item = OBJECTS[name]
                assert game.layout.types[place] in item.usual | item.sometimes
            assert World(game).progress() == 0.0


def test_the_tables_name_only_known_things():
    receptacles = {name for rooms in ROOMS.values() for room in rooms.values() for name in room}
    assert receptacles >= OPENABLE
    for name, item in OBJECTS.items():
        assert item.fits <= receptacles, name
        assert item.rooms <= set(ROOMS["full"]), name
        assert item.treatments <= {"clean", "heat", "cool"}, name
        assert not item.usual & item.sometimes, name


DIGEST = """
import hashlib
from firesteel.environments.household import Household
digest = hashlib.blake2b(digest_size=8)
for size in ("small", "full"):
    for split in ("train", "l0", "l1", "l2"):
        env = Household(size=size)
        for task in Household.tasks(split, count=6, size=size):
            digest.update(repr((task, env.reset(task, seed=0), env.goal)).encode())
            while (step := env.expert()) is not None:
                digest.update(repr((step, env.step(step.action))).encode())
print(digest.hexdigest())
"""


def test_games_and_experts_are_the_same_in_every_process():
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1
