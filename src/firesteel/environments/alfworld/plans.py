"""What the planner is asked: the current state, cut down to what the goal needs.

Of everything in a room a goal needs one or two objects, one place to put them and one appliance. With the rest cut
away, the planner answers in some 50 ms; with all of it, it may search for minutes and fill the memory, and nothing can
stop it. What it finds works in the whole room, too, where nothing can stand in the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from firesteel.environments.alfworld.grammar import Facts
from firesteel.environments.alfworld.planner import Translation

_APPLIANCES = {"isclean": "sinkbasintype", "ishot": "microwavetype", "iscool": "fridgetype"}
_KNIVES = ("knifetype", "butterknifetype")
_TREATED = (*_APPLIANCES, "issliced", "istoggled")
_OBJECTS_A_TYPE = 2


def goal_text(problem: str) -> str:
    """A problem's goal and what follows it, in lower case; "" where there is none."""
    found = re.search(r"\(\s*:goal.*", problem, re.DOTALL | re.IGNORECASE)
    return found.group().lower() if found else ""


def reduced_problem(translation: Translation, facts: Facts, goal: str) -> str:
    """A PDDL problem that starts where `facts` hold, with what `goal` needs and nothing else."""
    kept = _needed(facts, goal)
    kinds = translation.objects
    kept |= {thing for thing, kind in kinds.items() if kind not in ("object", "receptacle", "location")}
    names = sorted(kept & set(kinds))
    return "\n".join(
        [
            "(define (problem reduced) (:domain alfred) (:objects",
            *(f"{name} - {kinds[name]}" for name in names),
            ") (:init (= (total-cost) 0)",
            *(
                f"({predicate} {' '.join(row)})"
                for predicate, rows in facts.items()
                if not predicate.startswith(("not_", "new-axiom"))
                for row in rows
                if kept.issuperset(row)
            ),
            ")",
            goal,
        ]
    )


def _needed(facts: Facts, goal: str) -> set[str]:
    """The objects, receptacles and locations that a way to the goal uses."""
    types = set(re.findall(r"\b\w+type\b", goal))
    held = {thing for _, thing in facts.get("holds", ())}
    lies_in = {thing: place for thing, place in facts.get("inreceptacle", ())}
    wanted = {thing for thing, kind in facts.get("objecttype", ()) if kind in types}
    destinations = [place for place, kind in facts.get("receptacletype", ()) if kind in types]
    places = set(_best_places(destinations, [lies_in[thing] for thing in wanted if thing in lies_in], facts))
    things = set(_best_objects(types, facts, places)) | held
    if "issliced" in goal:
        things |= set(_best_objects(set(_KNIVES), facts, places, 1))
    places |= {lies_in[thing] for thing in things if thing in lies_in}
    for predicate, appliance in _APPLIANCES.items():
        if predicate in goal:
            places |= set([place for place, kind in facts.get("receptacletype", ()) if kind == appliance][:1])
    for thing in held - wanted:
        places |= set(_where_it_fits(thing, facts)[:1])
    locations = {location for place, location in facts.get("receptacleatlocation", ()) if place in places}
    return things | places | locations | {location for _, location in facts.get("atlocation", ())}


def _best_places(places: Iterable[str], contents: list[str], facts: Facts) -> list[str]:
    """One of the places: that with most of the wanted objects, else one that is never closed."""
    closed = {place for (place,) in facts.get("openable", ())}
    return sorted(places, key=lambda place: (-contents.count(place), place in closed, place))[:1]


def _best_objects(types: set[str], facts: Facts, places: set[str], count: int = _OBJECTS_A_TYPE) -> list[str]:
    """Of each type the objects that are nearest to done: in hand, treated, or where they belong; others can be got."""
    held = {thing for _, thing in facts.get("holds", ())}
    got = held | {thing for thing, _ in facts.get("inreceptacle", ())}
    treated = {row[0] for predicate in _TREATED for row in facts.get(predicate, ())}
    there = {thing for thing, place in facts.get("inreceptacle", ()) if place in places}
    by_type: dict[str, list[str]] = {}
    for thing, kind in facts.get("objecttype", ()):
        if kind in types:
            by_type.setdefault(kind, []).append(thing)
    return [
        thing
        for things in by_type.values()
        for thing in sorted(things, key=lambda x: (x not in got, x not in held, x not in treated, x not in there, x))[
            :count
        ]
    ]


def _where_it_fits(thing: str, facts: Facts) -> list[str]:
    """The receptacles that a thing can be put into, those that are never closed first."""
    kinds = {kind for other, kind in facts.get("objecttype", ()) if other == thing}
    fitting = {place for place, kind in facts.get("cancontain", ()) if kind in kinds}
    places = [place for place, kind in facts.get("receptacletype", ()) if kind in fitting]
    closed = {place for (place,) in facts.get("openable", ())}
    return sorted(places, key=lambda place: (place in closed, place))
