"""Generated games in ALFWorld's own format, each won by the planner before it is written.

The rules, the texts and the tables of what can be put, cleaned, heated, cooled, toggled and sliced are read from the
installed `alfworld` package; the rooms, what lies where and which goals are asked for are those of `household`, with
its splits: no game of one split is in another, and the rooms of valid_unseen are in no other split.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from firesteel.environments.alfworld.engine import close_engine, open_engine
from firesteel.environments.alfworld.games import FOLDERS, GAME_FILE, KINDS, RELEASE, TASK_FILE, Game
from firesteel.environments.alfworld.planner import HOW_TO_INSTALL as HOW_TO_INSTALL_PLANNER
from firesteel.environments.household.export import ALFWORLD_PACKAGE, camel_case, entity_id
from firesteel.environments.household.generate import make_game
from firesteel.environments.household.vocabulary import LAMP, OBJECTS, ROOMS
from firesteel.environments.household.world import Game as Room
from firesteel.errors import ConfigError, MissingDependency, TaskError
from firesteel.files import make_directory, write_json_atomic
from firesteel.plugins import nearest

HOW_TO_INSTALL = f"pip install --no-deps '{ALFWORLD_PACKAGE}' (small, without what it needs for pictures)"

HOUSEHOLD_SPLITS = {"train": "train", "validation": "l0", "test": "l1"}
"""The household split whose games a split has; a policy trained on household has not seen the latter two."""

_TRAITS = {
    "Cleanable": "cleanable",
    "Heatable": "heatable",
    "Coolable": "coolable",
    "Toggleable": "toggleable",
    "Sliceable": "sliceable",
}
_RULES_MENTION = ("SinkBasinType", "MicrowaveType", "FridgeType"), ("KnifeType", "ButterKnifeType")
"""Receptacle and object types that the rules name; a problem must declare them even where none is there."""

_START = "loc_bar_0_bar_0_bar_0_bar_30"


@dataclass(frozen=True, slots=True)
class Source:
    """What the `alfworld` package knows. `goals` has a PDDL goal for each task type, `fits` what goes where."""

    domain: str
    grammar: str
    goals: dict[str, str]
    fits: dict[str, set[str]]
    traits: dict[str, set[str]]
    openable: frozenset[str]
    holders: frozenset[str]


@cache
def read_source() -> Source:
    """Reads the package without importing it, which would make a folder in the user's home and load TextWorld."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or spec.origin is None:
        raise MissingDependency(f"generating games needs ALFWorld's rules: {HOW_TO_INSTALL}")
    root = Path(spec.origin).parent
    constants, goals = (_module(root / "gen" / f"{name}.py") for name in ("constants", "goal_library"))
    return Source(
        domain=(root / "data" / "alfred.pddl").read_text(encoding="utf-8"),
        grammar=(root / "data" / "alfred.twl2").read_text(encoding="utf-8"),
        goals={kind: goals.gdict[kind]["pddl"] for kind in KINDS},
        fits=constants.VAL_RECEPTACLE_OBJECTS,
        traits=constants.VAL_ACTION_OBJECTS,
        openable=frozenset(constants.OPENABLE_CLASS_LIST),
        holders=frozenset(constants.MOVABLE_RECEPTACLES),
    )


def check_installed() -> None:
    """Raises `MissingDependency` with all that generating games lacks: the planner library, ALFWorld's rules."""
    wanted = {
        "fast_downward": ("the planner library", HOW_TO_INSTALL_PLANNER),
        "alfworld": ("ALFWorld's rules", HOW_TO_INSTALL),
    }
    missing = [each for module, each in wanted.items() if importlib.util.find_spec(module) is None]
    if missing:
        names, commands = zip(*missing, strict=True)
        raise MissingDependency(f"generating games needs {' and '.join(names)}: {' and '.join(commands)}")


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"_firesteel_alfworld_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_games(
    out: Path,
    *,
    count: int,
    splits: Sequence[str] = tuple(HOUSEHOLD_SPLITS),
    seed: int = 0,
    size: str = "full",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Writes `count` games of each split under `out`, task types in turn; the number written of each split.

    The folders are those of ALFWorld's own data (`out`/json_2.1.1/train/...): `out` can stand for ALFWORLD_DATA.
    A game is a function of (size, split, seed, its number, task type) alone. `size` is "full" (12 to 30 receptacles) or
    "small" (6 to 10). A game that is there already is made again, with the same content.

    Raises:
        MissingDependency: the planner library or the `alfworld` package is not installed.
        TaskError: the planner does not win a game, which is then not written.
    """
    for split in splits:
        if split not in HOUSEHOLD_SPLITS:
            known = ", ".join(HOUSEHOLD_SPLITS)
            raise ConfigError(
                f"generated games have no split '{split}'{nearest(split, HOUSEHOLD_SPLITS)}; known: {known}"
            )
    if size not in ROOMS:
        raise ConfigError(f"size must be {' or '.join(map(repr, ROOMS))}, not {size!r}")
    if count < 1:
        raise ConfigError(f"count must be at least 1, not {count}")
    check_installed()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"games cannot be written into '{out}': {error.strerror}; name another directory") from error
    written = dict.fromkeys(splits, 0)
    for split in splits:
        for index in range(count):
            _write_game(out, split, seed, index, size)
            written[split] += 1
            if on_progress is not None:
                on_progress(sum(written.values()), count * len(written))
    return written


def _write_game(out: Path, split: str, seed: int, index: int, size: str) -> None:
    kind = KINDS[index % len(KINDS)]
    room = make_game(size, HOUSEHOLD_SPLITS[split], seed, index, kind)
    content, task = game_content(room), task_content(room)
    goal, destination = camel_case(room.goal.object_type), camel_case(room.goal.destination or LAMP)
    folder = f"{kind}-{goal}-None-{destination}-{room.layout.id}"
    place = out / RELEASE / FOLDERS[split] / folder / f"trial_G{seed}_{index:05d}_{size}"
    walkthrough = winning_plan(content, task, f"generated game {place}")
    make_directory(place)
    write_json_atomic(place / TASK_FILE, task)
    write_json_atomic(place / GAME_FILE, content | {"solvable": True, "walkthrough": list(walkthrough)})


def winning_plan(content: dict[str, Any], task: dict[str, Any], name: str) -> tuple[str, ...]:
    """The planner's commands for a game, played to the end. Raises `TaskError` where they do not win it."""
    parameters = task["pddl_params"]
    game = Game(
        name, content["pddl_domain"], content["grammar"], content["pddl_problem"], task["task_type"],
        parameters["object_target"].lower(), parameters["parent_target"].lower(), (),
    )  # fmt: skip
    engine = open_engine(game)
    try:
        position = engine.start
        plan = engine.plan(position)
        if position.is_won or not plan:
            raise TaskError(
                f"{name}: the planner finds {'it won at the start' if position.is_won else 'no way to win'}"
            )
        for command in plan:
            position, _ = engine.play(position, command)
        if not position.is_won:
            raise TaskError(f"{name}: the planner's way ({'; '.join(plan)}) does not win it")
    finally:
        close_engine(engine)
    return plan


def game_content(room: Room) -> dict[str, Any]:
    """What `game.tw-pddl` holds, without the verdict of the planner."""
    source = read_source()
    sentence = room.goal.sentence.removesuffix(".")
    return {
        "pddl_domain": source.domain,
        "grammar": source.grammar.replace("UNKNOWN GOAL", sentence),
        "pddl_problem": pddl_problem(room, source),
    }


def task_content(room: Room) -> dict[str, Any]:
    """What `traj_data.json` holds, as far as ALFWorld's text games use it."""
    goal = room.goal
    sentence = goal.sentence.removesuffix(".")
    return {
        "task_id": f"generated_{room.layout.id}",
        "task_type": goal.kind,
        "pddl_params": {
            "object_target": camel_case(goal.object_type),
            "parent_target": camel_case(goal.destination),
            "toggle_target": camel_case(LAMP) if goal.kind == "look_at_obj_in_light" else "",
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"Generated-{room.layout.id}", "scene_num": 0},
        "turk_annotations": {"anns": [{"task_desc": sentence, "high_descs": []}]},
    }


def pddl_problem(room: Room, source: Source) -> str:
    """The PDDL problem: what there is, what is where, what can be done with it, and the goal."""
    toggle = camel_case(LAMP) if room.goal.kind == "look_at_obj_in_light" else ""
    goal = source.goals[room.goal.kind].format(
        obj=camel_case(room.goal.object_type), recep=camel_case(room.goal.destination), toggle=toggle, mrecep=""
    )
    lines = [
        "(define (problem generated)",
        "(:domain alfred)",
        "(:objects",
        *_declarations(room),
        ")",
        "(:init",
        *_receptacle_facts(room, source),
        *_object_facts(room, source),
        f"(atLocation agent1 {_START})",
        "(= (total-cost) 0)",
        ")",
        # ALFWorld's goals close the problem, and write a hash sign before a type.
        goal.replace("#", "-").strip(),
    ]
    return "\n".join(lines) + "\n"


def _location(place: int) -> str:
    return f"loc_bar_{place + 1}_bar_{place + 1}_bar_0_bar_30"


def _declarations(room: Room) -> list[str]:
    receptacles, objects = _RULES_MENTION
    receptacle_types = dict.fromkeys([*(f"{camel_case(name)}Type" for name in room.layout.types), *receptacles])
    object_types = dict.fromkeys([*(f"{camel_case(name)}Type" for name in room.object_types), *objects])
    return [
        "agent1 - agent",
        *(f"{name} - rtype" for name in receptacle_types),
        *(f"{name} - otype" for name in object_types),
        *(f"{entity_id(name)} - object" for name in room.names),
        *(f"{entity_id(name)} - receptacle" for name in room.layout.names),
        *(f"{_location(place)} - location" for place in range(len(room.layout.names))),
        f"{_START} - location",
    ]


def _receptacle_facts(room: Room, source: Source) -> list[str]:
    facts = []
    for place, (name, kind) in enumerate(zip(room.layout.names, room.layout.types, strict=True)):
        facts.append(f"(receptacleType {entity_id(name)} {camel_case(kind)}Type)")
        facts.append(f"(receptacleAtLocation {entity_id(name)} {_location(place)})")
        if camel_case(kind) in source.openable:
            facts.append(f"(openable {entity_id(name)})")
    for kind in dict.fromkeys(room.layout.types):
        for name in dict.fromkeys(room.object_types):
            # Where a thing lies, and where it is asked for, it can be put.
            if camel_case(name) in source.fits.get(camel_case(kind), ()) or kind in OBJECTS[name].fits:
                facts.append(f"(canContain {camel_case(kind)}Type {camel_case(name)}Type)")
    return facts


def _object_facts(room: Room, source: Source) -> list[str]:
    facts = []
    for name, kind, place in zip(room.names, room.object_types, room.starts, strict=True):
        entity, alfred = entity_id(name), camel_case(kind)
        facts.append(f"(objectType {entity} {alfred}Type)")
        facts.append(f"(inReceptacle {entity} {entity_id(room.layout.names[place])})")
        facts.append(f"(objectAtLocation {entity} {_location(place)})")
        if kind != LAMP:
            facts.append(f"(pickupable {entity})")
        if alfred in source.holders:
            facts.append(f"(isReceptacleObject {entity})")
        facts += [f"({trait} {entity})" for table, trait in _TRAITS.items() if alfred in source.traits[table]]
    return facts
