"""Exported games: names, facts and goals by hand. Playing them in the real engine is a system test."""

import sys

import pytest

from firesteel.environments.household import Household
from firesteel.environments.household.export import camel_case, entity_id, export_alfworld, goal_condition, problem
from firesteel.environments.household.vocabulary import KINDS
from firesteel.environments.household.world import Game, Goal, Layout
from firesteel.errors import EnvironmentFailed, MissingDependency


def small_game(kind: str = "pick_clean_then_place_in_recep") -> Game:
    layout = Layout("test", "kitchen", ("cabinet", "countertop", "sinkbasin"))
    return Game(layout, ("mug", "mug", "fork"), (1, 2, 1), Goal(kind, "mug", "cabinet", "put a clean mug in cabinet."))


def test_types_are_written_as_in_alfred():
    names = ("sidetable", "tvstand", "cd", "mug", "")
    assert [camel_case(name) for name in names] == ["SideTable", "TVStand", "CD", "Mug", ""]


def test_ids_sort_from_the_highest_number_down():
    """ALFWorld gives the first of the sorted ids the highest number."""
    ids = [entity_id(f"drawer {number}") for number in range(1, 13)]
    assert sorted(ids) == ids[::-1]


def test_basins_end_in_their_own_name():
    assert entity_id("sinkbasin 1").startswith("Sink_bar_")
    assert entity_id("sinkbasin 1").endswith("_bar_SinkBasin")


def test_the_problem_holds_every_fact_by_hand():
    lines = problem(small_game()).splitlines()
    sink, mug = entity_id("sinkbasin 1"), entity_id("mug 2")
    for fact in (
        "agent1 - agent",
        "MugType - otype",
        "SinkBasinType - rtype",
        "MicrowaveType - rtype",
        "KnifeType - otype",
        f"(receptacleType {sink} SinkBasinType)",
        f"(inReceptacle {mug} {sink})",
        f"(objectType {mug} MugType)",
        f"(pickupable {mug})",
        f"(cleanable {mug})",
        f"(openable {entity_id('cabinet 1')})",
        "(canContain CabinetType MugType)",
    ):
        assert lines.count(fact) == 1, fact
    assert "(canContain CabinetType ForkType)" not in lines
    assert f"(openable {sink})" not in lines
    assert "\n".join(lines).count("(") == "\n".join(lines).count(")")


def test_goals_by_hand():
    assert goal_condition(small_game()) == (
        "(exists (?r - receptacle ?o - object) (and (receptacleType ?r CabinetType) (objectType ?o MugType) "
        "(inReceptacle ?o ?r) (isClean ?o)))"
    )
    conditions = {goal_condition(small_game(kind)) for kind in KINDS}
    assert len(conditions) == len(KINDS)


def test_exporting_needs_alfworld_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "alfworld", None)
    with pytest.raises(MissingDependency, match="pip install --no-deps 'alfworld>="):
        export_alfworld(small_game())


def test_exporting_before_reset_is_an_error():
    with pytest.raises(EnvironmentFailed, match="reset"):
        export_alfworld(Household())
