"""Household games as ALFWorld game files, so that the same game can be played in ALFWorld's own engine.

The rules (PDDL domain) and the wording (grammar) are read from the installed `alfworld` package; the rooms, objects
and goals are ours. Names, numbers, commands and descriptions come out the same.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from firesteel.environments.household.environment import Household
from firesteel.environments.household.expert import solve
from firesteel.environments.household.generate import MAX_EXPERT_STEPS
from firesteel.environments.household.vocabulary import LAMP, OBJECTS
from firesteel.environments.household.world import Game
from firesteel.errors import EnvironmentFailed, MissingDependency

ALFWORLD_PACKAGE = "alfworld>=0.4.2,<0.5"
"""The package with ALFWorld's rules and tables; installed without its dependencies, of which none is needed."""

START = "loc_bar_0_bar_0_bar_0_bar_30"

_COMPOUNDS = (
    "AlarmClock ArmChair BaseballBat BasketBall BathtubBasin ButterKnife CD CellPhone CoffeeMachine CoffeeTable "
    "CounterTop CreditCard DeskLamp DiningTable DishSponge GarbageCan HandTowel HandTowelHolder KeyChain "
    "LaundryHamper PepperShaker RemoteControl SaltShaker SideTable SinkBasin SoapBar SoapBottle SprayBottle "
    "StoveBurner TVStand TissueBox ToiletPaper ToiletPaperHanger TowelHolder WateringCan WineBottle"
)
_CAMEL_CASE = {name.lower(): name for name in _COMPOUNDS.split()}

_DOMAIN_CONSTANTS = (
    "SinkBasinType - rtype",
    "MicrowaveType - rtype",
    "FridgeType - rtype",
    "KnifeType - otype",
    "ButterKnifeType - otype",
)
"""Types that ALFWorld's domain names in its actions; a problem must declare them even where none is present."""

_TRAITS = {"clean": "cleanable", "heat": "heatable", "cool": "coolable"}
_STATES = {"clean": "isClean", "heat": "isHot", "cool": "isCool"}


def export_alfworld(game: Household | Game) -> dict[str, dict[str, Any]]:
    """The two JSON files of an ALFWorld game by name: "game.tw-pddl" and "traj_data.json".

    Of an environment, the game of its current episode is exported as it was at the episode's start. The walkthrough
    is the expert's episode. Raises `MissingDependency` without the `alfworld` package.
    """
    if isinstance(game, Household):
        game = _running_game(game)
    domain, grammar = (_alfworld_data(name) for name in ("alfred.pddl", "alfred.twl2"))
    sentence = game.goal.sentence.removesuffix(".")
    walkthrough = solve(game, limit=MAX_EXPERT_STEPS)
    return {
        "game.tw-pddl": {
            "pddl_domain": domain,
            "grammar": grammar.replace("UNKNOWN GOAL", sentence),
            "pddl_problem": problem(game),
            "solvable": walkthrough is not None,
            "walkthrough": None if walkthrough is None else [step.action for step in walkthrough],
        },
        "traj_data.json": {
            "task_id": f"household_{game.layout.id}",
            "task_type": game.goal.kind,
            "pddl_params": {
                "object_target": camel_case(game.goal.object_type),
                "parent_target": camel_case(game.goal.destination),
                "toggle_target": camel_case(LAMP) if game.goal.kind == "look_at_obj_in_light" else "",
                "mrecep_target": "",
                "object_sliced": False,
            },
            "scene": {"floor_plan": game.layout.id},
            "turk_annotations": {"anns": [{"task_desc": sentence}]},
        },
    }


def write_alfworld(game: Household | Game, folder: str | Path) -> Path:
    """Writes both files into a folder, which is made if needed; returns the path of game.tw-pddl."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in export_alfworld(game).items():
        (folder / name).write_text(json.dumps(content))
    return folder / "game.tw-pddl"


def camel_case(name: str) -> str:
    """A type's name as ALFRED writes it: "sidetable" becomes "SideTable"; "" stays ""."""
    return _CAMEL_CASE.get(name, name.capitalize())


def entity_id(name: str) -> str:
    """A PDDL name that ALFWorld turns back into `name`: "mug 2" becomes "Mug_bar_..._bar_...".

    ALFWorld numbers the objects of a type by their sorted ids, the first one highest; hence the falling coordinate.
    Basins carry theirs at the end: "Sink_bar_..._bar_SinkBasin" reads "sinkbasin".
    """
    kind, number = name.split()
    coordinates = f"_bar__plus_{99 - int(number):02d}_dot_00_bar__plus_00_dot_00_bar__plus_00_dot_00"
    if kind.endswith("basin"):
        return f"{camel_case(kind.removesuffix('basin'))}{coordinates}_bar_{camel_case(kind)}"
    return camel_case(kind) + coordinates


def problem(game: Game) -> str:
    """The PDDL problem: what there is, where it is, what can be done with it, and the goal."""
    return "\n".join(
        [
            "(define (problem household)",
            "(:domain alfred)",
            "(:objects",
            *_declarations(game),
            ")",
            "(:init",
            *_receptacle_facts(game),
            *_object_facts(game),
            f"(atLocation agent1 {START})",
            "(= (total-cost) 0)",
            ")",
            f"(:goal {goal_condition(game)})",
            ")",
        ]
    )


def _location(place: int) -> str:
    return f"loc_bar_{place + 1}_bar_{place + 1}_bar_0_bar_30"


def _declarations(game: Game) -> list[str]:
    places, things = game.layout.names, game.names
    types = {f"{camel_case(name)}Type - rtype": None for name in game.layout.types}
    types |= {f"{camel_case(name)}Type - otype": None for name in game.object_types}
    types |= dict.fromkeys(_DOMAIN_CONSTANTS)
    return [
        "agent1 - agent",
        *types,
        *(f"{entity_id(name)} - object" for name in things),
        *(f"{entity_id(name)} - receptacle" for name in places),
        *(f"{_location(place)} - location" for place in range(len(places))),
        f"{START} - location",
    ]


def _receptacle_facts(game: Game) -> list[str]:
    facts = []
    for place, name in enumerate(game.layout.names):
        facts.append(f"(receptacleType {entity_id(name)} {camel_case(game.layout.types[place])}Type)")
        facts.append(f"(receptacleAtLocation {entity_id(name)} {_location(place)})")
        if game.layout.is_openable[place]:
            facts.append(f"(openable {entity_id(name)})")
    for receptacle in dict.fromkeys(game.layout.types):
        for name in dict.fromkeys(game.object_types):
            if receptacle in OBJECTS[name].fits:
                facts.append(f"(canContain {camel_case(receptacle)}Type {camel_case(name)}Type)")
    return facts


def _object_facts(game: Game) -> list[str]:
    facts = []
    for thing, place in enumerate(game.starts):
        name = game.object_types[thing]
        entity = entity_id(game.names[thing])
        facts.append(f"(objectType {entity} {camel_case(name)}Type)")
        facts.append(f"({'toggleable' if name == LAMP else 'pickupable'} {entity})")
        facts.append(f"(inReceptacle {entity} {entity_id(game.layout.names[place])})")
        facts.append(f"(objectAtLocation {entity} {_location(place)})")
        facts += [f"({_TRAITS[verb]} {entity})" for verb in sorted(OBJECTS[name].treatments)]
    return facts


def goal_condition(game: Game) -> str:
    """The goal in PDDL, with the predicates of ALFWorld's domain."""
    goal = game.goal
    target, destination = f"{camel_case(goal.object_type)}Type", f"{camel_case(goal.destination)}Type"
    if goal.kind == "look_at_obj_in_light":
        return (
            "(exists (?a - agent ?o - object ?lamp - object ?r - receptacle ?l - location) (and "
            f"(objectType ?o {target}) (holds ?a ?o) (atLocation ?a ?l) (receptacleAtLocation ?r ?l) "
            f"(inReceptacle ?lamp ?r) (objectType ?lamp {camel_case(LAMP)}Type) (isToggled ?lamp)))"
        )
    if goal.kind == "pick_two_obj_and_place":
        return (
            f"(exists (?r - receptacle ?o1 - object ?o2 - object) (and (receptacleType ?r {destination}) "
            f"(not (= ?o1 ?o2)) (objectType ?o1 {target}) (objectType ?o2 {target}) "
            "(inReceptacle ?o1 ?r) (inReceptacle ?o2 ?r)))"
        )
    state = f" ({_STATES[goal.treatment]} ?o)" if goal.treatment else ""
    return (
        f"(exists (?r - receptacle ?o - object) (and (receptacleType ?r {destination}) "
        f"(objectType ?o {target}) (inReceptacle ?o ?r){state}))"
    )


def _running_game(env: Household) -> Game:
    if env.game is None:
        raise EnvironmentFailed("household has no game to export before its first reset; call reset(task, seed=...)")
    return env.game


def _alfworld_data(name: str) -> str:
    # The package is located, not imported: importing it makes a folder in the user's home.
    spec = importlib.util.find_spec("alfworld")
    if spec is None or spec.origin is None:
        raise MissingDependency(f"exporting needs ALFWorld's rules: pip install --no-deps '{ALFWORLD_PACKAGE}'")
    return (Path(spec.origin).parent / "data" / name).read_text()
