"""ALFWorld's parts that need nothing installed: game files, texts, the planner's question, generated problems."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from firesteel.environments.alfworld import AlfWorld
from firesteel.environments.alfworld import planner as planners
from firesteel.environments.alfworld.engine import _changed, names_of
from firesteel.environments.alfworld.expert import explain, things_in
from firesteel.environments.alfworld.games import KINDS, Game, data_folder, find_games, kind_of, read_game
from firesteel.environments.alfworld.generate import Source, pddl_problem, read_source, task_content, write_games
from firesteel.environments.alfworld.grammar import Entity, Scene, Things, parse_grammar, parse_query, parse_symbols
from firesteel.environments.alfworld.planner import Translation
from firesteel.environments.alfworld.plans import goal_text, reduced_problem
from firesteel.environments.household.world import Game as Room
from firesteel.environments.household.world import Goal, Layout
from firesteel.errors import CannotFork, ConfigError, EnvironmentFailed, FiresteelError, MissingDependency, TaskError
from firesteel.recipes import load_recipe, run_recipe
from firesteel.types import ExpertStep, Task

TASK = {"task_type": "pick_and_place_simple", "pddl_params": {"object_target": "Mug", "parent_target": "Desk"}}
GAME = {"pddl_domain": "(d)", "grammar": "g", "pddl_problem": "(p)", "solvable": True, "walkthrough": ["look"]}


def write_game(
    root: Path, split: str, number: int = 0, kind: str = KINDS[0], *, game: Any = GAME, task: Any = None
) -> Path:
    folder = root / split / f"{kind}-Mug-None-Desk-{number}" / "trial_1"
    folder.mkdir(parents=True)
    (folder / "traj_data.json").write_text(json.dumps(TASK | {"task_type": kind} if task is None else task))
    if game is not None:
        (folder / "game.tw-pddl").write_text(json.dumps(game))
    return folder


# Finding games


def test_games_are_found_below_the_release_or_directly(tmp_path, monkeypatch):
    folder = write_game(tmp_path / "json_2.1.1", "train")
    assert data_folder(tmp_path) == data_folder(tmp_path / "json_2.1.1") == tmp_path / "json_2.1.1"
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert data_folder(None) == tmp_path / "json_2.1.1"
    (task,) = AlfWorld.tasks("train")
    assert (task.kind, task.split, task.data["game"]) == (KINDS[0], "train", str(folder))
    assert task.id == "alfworld-train-pick_and_place_simple-Mug-None-Desk-0/trial_1"


def test_wrong_places_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(TaskError, match="ALFWORLD_DATA is not set and no games=DIR is given; download"):
        AlfWorld.tasks("train")
    with pytest.raises(TaskError, match="games is '.*nowhere', which is no folder; .*firesteel games alfworld"):
        AlfWorld.tasks("train", games=str(tmp_path / "nowhere"))
    with pytest.raises(TaskError, match="none of the folders train, valid_seen, valid_unseen"):
        AlfWorld.tasks("train", games=str(tmp_path))
    write_game(tmp_path, "train")
    with pytest.raises(TaskError, match="split 'test': no game lies in '.*valid_unseen'"):
        AlfWorld.tasks("test", games=str(tmp_path))


def test_sliced_movable_and_unsolvable_games_are_left_out(tmp_path):
    kept = write_game(tmp_path, "train", 1)
    write_game(tmp_path, "train", 2, "pick_and_place_with_movable_recep")
    write_game(tmp_path, "train", 3, game=GAME | {"solvable": False})
    write_game(tmp_path, "train", 4, game=None)
    sliced = tmp_path / "train" / "pick_and_place_simple-AppleSliced-None-Desk-1" / "trial_1"
    sliced.mkdir(parents=True)
    (sliced / "traj_data.json").write_text(json.dumps(TASK))
    assert [task.data["game"] for task in AlfWorld.tasks("train", games=tmp_path)] == [str(kept)]
    assert len(find_games(tmp_path, "train")) == 3


def test_a_draw_mixes_task_types_and_a_longer_one_begins_the_same(tmp_path):
    for number in range(4):
        for kind in KINDS[:3]:
            write_game(tmp_path, "valid_seen", number, kind)
    drawn = AlfWorld.tasks("validation", count=9, seed=3, games=tmp_path)
    assert sorted(task.kind for task in drawn[:3]) == sorted(KINDS[:3])
    assert len({task.id for task in drawn}) == 9
    assert list(drawn[:4]) == list(AlfWorld.tasks("validation", count=4, seed=3, games=tmp_path))
    assert list(drawn) != list(AlfWorld.tasks("validation", count=9, seed=4, games=tmp_path))
    only = AlfWorld.tasks("l0", count=9, games=tmp_path, task_types=[KINDS[1]])
    assert [task.kind for task in only] == [KINDS[1]] * 4


def test_the_kind_comes_from_the_folder_or_from_the_task_file(tmp_path):
    assert kind_of(write_game(tmp_path, "train")) == KINDS[0]
    folder = tmp_path / "own" / "trial"
    folder.mkdir(parents=True)
    (folder / "traj_data.json").write_text(json.dumps(TASK | {"task_type": KINDS[4]}))
    assert kind_of(folder) == KINDS[4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "no split 'valid' .did you mean 'validation'.."),
        ({"split": "train", "game": "x"}, "no option 'game' .did you mean 'games'.."),
        ({"split": "train", "task_types": ["pick_heat"]}, "no task type 'pick_heat'"),
        ({"split": "train", "task_types": "pick"}, "must be a list"),
        ({"split": "train", "count": -1}, "count must be at least 0"),
    ],
)
def test_what_is_asked_wrongly_is_refused(arguments, message):
    with pytest.raises((TaskError, ConfigError), match=message):
        AlfWorld.tasks(**arguments)


# Reading a game


def test_a_game_is_read(tmp_path):
    folder = write_game(tmp_path, "train")
    game = read_game(folder)
    assert (game.domain, game.kind, game.target, game.destination) == ("(d)", KINDS[0], "mug", "desk")
    assert game.walkthrough == ("look",)
    assert read_game(folder) is game


@pytest.mark.parametrize(
    ("game", "task", "message"),
    [
        (None, None, "game.tw-pddl' is missing"),
        ('{"pddl_domain": "(define', None, "game.tw-pddl' is not complete JSON"),
        ("[1]", None, "must hold a JSON object, got list"),
        (json.dumps(GAME | {"grammar": ""}), None, "has no text 'grammar'"),
        (json.dumps({"solvable": True}), None, "has no text 'pddl_domain'"),
        (json.dumps(GAME | {"walkthrough": [1]}), None, "walkthrough must be a list of commands"),
        (json.dumps(GAME), "{", "traj_data.json' is not complete JSON"),
        (json.dumps(GAME), "{}", "traj_data.json' has no 'task_type' and 'pddl_params'"),
    ],
)
def test_damage_is_named_with_the_file(tmp_path, game, task, message):
    folder = write_game(tmp_path, "train", game=None)
    if game is not None:
        (folder / "game.tw-pddl").write_text(game)
    if task is not None:
        (folder / "traj_data.json").write_text(task)
    with pytest.raises(TaskError, match=message):
        AlfWorld().reset(Task("t", data={"game": str(folder)}), seed=0)


def test_a_truncated_file_stops_the_list_of_tasks(tmp_path):
    folder = write_game(tmp_path, "train")
    (folder / "game.tw-pddl").write_text(json.dumps(GAME)[:30])
    with pytest.raises(TaskError, match="not complete JSON"):
        AlfWorld.tasks("train", games=tmp_path)


def test_foreign_tasks_and_calls_out_of_order_are_refused():
    environment = AlfWorld()
    with pytest.raises(TaskError, match="not an alfworld task"):
        environment.reset(Task("t"), seed=0)
    with pytest.raises(EnvironmentFailed, match="before its first reset"):
        environment.step("look")
    with pytest.raises(CannotFork, match="before its first reset"):
        environment.fork()
    environment.close()
    environment.close()


def test_the_planner_is_asked_for_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "fast_downward", None)
    text = GRAMMAR
    folder = write_game(tmp_path, "train", game=GAME | {"grammar": text})
    with pytest.raises(MissingDependency, match="pip install 'firesteel.alfworld.'"):
        AlfWorld().reset(Task("t", data={"game": str(folder)}), seed=0)


def test_all_that_generating_lacks_is_named_before_anything_is_written(tmp_path, monkeypatch):
    for module in ("fast_downward", "alfworld"):
        monkeypatch.setitem(sys.modules, module, None)
    both = "pip install 'firesteel.alfworld.' .* and pip install --no-deps 'alfworld>="
    with pytest.raises(MissingDependency, match=f"needs the planner library and ALFWorld's rules: {both}"):
        write_games(tmp_path / "games", count=1)
    said = []
    recipe = load_recipe("alfworld_transfer")
    with pytest.raises(MissingDependency, match=both):
        run_recipe(recipe, {"runs_dir": str(tmp_path / "runs")}, resume=False, listen=lambda *event: said.append(event))
    assert not said and not list(tmp_path.iterdir())


# Texts

GRAMMAR = '''
grammar :: """ { "hello": [{"condition": "open(b:box)", "rhs": "The {b.name} is open."}, {"rhs": "#name#?"}],
  "name": [{"rhs": "  {b.name or b.id}"}], "list_empty": [{"rhs": "nothing"}],
  "list_separator": [{"rhs": ", "}], "list_last_separator": [{"rhs": ", and "}],
  "content": [{"rhs": "In it: [{o.indefinite + ' ' + o.name | in(o:object, b:box)}]."}] } """;

action Look {
    template :: "look into {b}";  # a comment
    feedback :: "#content#";
}
'''

THINGS = Things(
    {
        id: Entity(id, name)
        for id, name in {"b1": "box 1", "b2": "", "o1": "pen 1", "o2": "mug 1", "o3": "cd 1"}.items()
    },
    {"box": frozenset({"b1", "b2"}), "object": frozenset({"b1", "b2", "o1", "o2", "o3"})},
)


def said(symbols: str, box: str = "b1", **facts: list[tuple[str, ...]]) -> str:
    scene = Scene({name: sorted(rows) for name, rows in facts.items()}, THINGS, {("b", "box"): box})
    return parse_grammar(GRAMMAR).write(parse_symbols(symbols), scene)


def test_rules_are_chosen_by_their_conditions():
    assert said("#hello#", open=[("b1",)]) == "The box 1 is open."
    assert said("#hello#", open=[("b2",)]) == "box 1?"
    assert said("#hello#", box="b2") == "b2?"


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        ([], "In it: nothing."),
        ([("o1", "b1")], "In it: a pen 1."),
        ([("o2", "b1"), ("o1", "b1")], "In it: a pen 1, and a mug 1."),
        ([("o3", "b1"), ("o2", "b1"), ("o1", "b1"), ("o3", "b2")], "In it: a pen 1, a mug 1, and a cd 1."),
    ],
)
def test_lists_are_joined_in_the_order_of_the_facts(inside, text):
    assert said("#content#", **{"in": inside}) == text


def test_actions_have_a_command_and_a_feedback():
    wording = parse_grammar(GRAMMAR).actions["look"]
    scene = Scene({"in": ()}, THINGS, {("b", "box"): "b1"})
    assert parse_grammar(GRAMMAR).write(wording.command, scene) == "look into box 1"
    assert parse_grammar(GRAMMAR).write(wording.feedback, scene) == "In it: nothing."


def test_different_variables_stand_for_different_things():
    (condition,) = parse_query("in(o:object, p:object)")
    scene = Scene({"in": [("o1", "o1"), ("o1", "o2")]}, THINGS, {})
    found = list(condition.matches(scene, {}))
    assert found == [{("o", "object"): "o1", ("p", "object"): "o2"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("action X { template :: 'a'; }", "cannot be read from"),
        ('action X { template :: "a"; }', "needs a template and a feedback"),
        ('action X template :: "a";', "has no body"),
        ('grammar :: "', "cannot be read"),
        ('grammar :: """ {"a": 3} """;', "rules that cannot be read"),
        ('grammar :: """ {"a": [{"rhs": "{o.__class__}"}]} """;', "not allowed"),
        ('grammar :: """ {"a": [{"rhs": "{open(o)}"}]} """;', "not allowed"),
        ('grammar :: """ {"a": [{"rhs": "{o.}"}]} """;', "cannot be read"),
        ('grammar :: """ {"a": [{"rhs": "x", "condition": "in(o"}]} """;', "query that cannot be read"),
        ("nonsense", "'nonsense' where 'grammar' or 'action'"),
    ],
)
def test_damaged_grammars_are_refused(text, message):
    with pytest.raises(TaskError, match=message):
        parse_grammar(text)


def test_texts_without_a_rule_or_a_name_are_refused():
    with pytest.raises(TaskError, match="no rule 'goodbye'"):
        said("#goodbye#")
    with pytest.raises(TaskError, match="cannot say '{x.name}'"):
        said("{x.name}")


def test_names_count_down_in_the_order_of_the_ids():
    ids = ["mug_bar__plus_01", "mug_bar__minus_01", "sink_bar_1_bar_sinkbasin", "agent1", "desk_bar_1"]
    assert names_of(ids) == {
        "mug_bar__minus_01": "mug 2", "mug_bar__plus_01": "mug 1", "sink_bar_1_bar_sinkbasin": "sinkbasin 1",
        "desk_bar_1": "desk 1", "agent1": "agent1 ",
    }  # fmt: skip


def test_facts_change_and_what_became_false_is_kept():
    facts = {"opened": (("a",), ("c",)), "holds": ()}
    after = _changed(facts, [(("opened", ("b",)), True), (("opened", ("c",)), False)])
    assert after["opened"] == (("a",), ("b",)) and after["not_opened"] == (("c",),)
    assert facts["opened"] == (("a",), ("c",))


# The planner's question and its answer

FACTS = {
    "objecttype": (("cup1", "cuptype"), ("mug1", "mugtype"), ("mug2", "mugtype"), ("mug3", "mugtype")),
    "receptacletype": (("desk1", "desktype"), ("desk2", "desktype"),
                       ("fridge1", "fridgetype"), ("sink1", "sinkbasintype")),
    "receptacleatlocation": (("desk1", "l1"), ("desk2", "l2"), ("fridge1", "l3"), ("sink1", "l4")),
    "inreceptacle": (("mug1", "fridge1"), ("mug2", "desk2"), ("mug3", "sink1")),
    "openable": (("fridge1",),),
    "holds": (("agent1", "cup1"),),
    "cancontain": (("desktype", "cuptype"), ("sinkbasintype", "cuptype")),
    "atlocation": (("agent1", "l0"),),
    "not_opened": (("fridge1",),),
}  # fmt: skip


def test_the_question_holds_what_the_goal_needs_and_the_hands():
    kinds = dict.fromkeys(("cup1", "mug1", "mug2", "mug3"), "object")
    kinds |= dict.fromkeys(("desk1", "desk2", "fridge1", "sink1"), "receptacle")
    kinds |= dict.fromkeys(("l0", "l1", "l2", "l3", "l4"), "location") | {"agent1": "agent", "mugtype": "otype"}
    translation = Translation("", {}, {}, kinds, [], [])
    goal = goal_text("(define (:init) (:GOAL (and (objectType ?o MugType) (receptacleType ?r DeskType))))")
    assert goal.startswith("(:goal (and (objecttype ?o mugtype)")
    lines = reduced_problem(translation, FACTS, goal).splitlines()
    # desk2 holds a mug already; mug2 lies there and mug1 comes next; the cup in hand goes to desk1.
    there = {line.partition(" - ")[0] for line in lines if " - " in line}
    assert there == {"agent1", "mugtype", "cup1", "mug1", "mug2", "desk1", "desk2", "fridge1", "l0", "l1", "l2", "l3"}
    assert "(inreceptacle mug1 fridge1)" in lines and "(inreceptacle mug3 sink1)" not in lines
    assert not any("not_" in line for line in lines)
    assert "sink1" in reduced_problem(translation, FACTS, goal + "(isClean ?o)".lower())


PLAN = ("go to cabinet 1", "open cabinet 1", "take mug 2 from cabinet 1", "go to sinkbasin 1",
        "clean mug 2 with sinkbasin 1", "go to desk 1", "move mug 2 to desk 1")  # fmt: skip


@pytest.mark.parametrize(
    ("done", "seen", "explore", "reason"),
    [
        (0, "a cabinet 1, and a desk 1", True, "find mug"),
        (0, "a mug 2", False, "the mug is there"),
        (1, "The cabinet 1 is closed.", True, "find mug"),
        (2, "a mug 2", False, "the mug is here"),
        (3, "a mug 2", False, "clean mug"),
        (5, "a mug 2", False, "place mug in desk"),
        (6, "a mug 2", False, "place mug in desk"),
    ],
)
def test_the_expert_explores_for_what_was_not_seen(done, seen, explore, reason):
    game = Game("g", "", "", "", KINDS[2], "mug", "desk", ())
    assert explain(game, PLAN[done:], frozenset(things_in(seen))) == ExpertStep(PLAN[done], explore, reason)


# Generated games


def room(kind: str = "look_at_obj_in_light") -> Room:
    layout = Layout("r", "bedroom", ("desk", "safe", "sinkbasin"))
    return Room(
        layout, ("mug", "desklamp", "apple"), (1, 0, 0), Goal(kind, "mug", "desk", "look at mug under the desklamp.")
    )


SOURCE = Source(
    domain="", grammar="", goals={kind: "(:goal ({obj}Type {recep}Type {toggle} # x)))" for kind in KINDS},
    fits={"Desk": {"Mug", "Apple"}}, openable=frozenset({"Safe"}), holders=frozenset({"Mug"}),
    traits={"Cleanable": {"Mug"}, "Heatable": {"Mug"}, "Coolable": set(), "Toggleable": {"DeskLamp"},
            "Sliceable": {"Apple"}},
)  # fmt: skip


def test_a_problem_holds_alfworlds_facts():
    lines = pddl_problem(room(), SOURCE).splitlines()
    mug = next(line for line in lines if line.startswith("(pickupable Mug")).split()[1][:-1]
    facts = [line.replace(mug, "MUG") for line in lines]
    for fact in (
        "(cleanable MUG)", "(heatable MUG)", "(isReceptacleObject MUG)", "(objectType MUG MugType)",
        "(canContain DeskType MugType)", "KnifeType - otype", "FridgeType - rtype", "SinkBasinType - rtype",
    ):  # fmt: skip
        assert facts.count(fact) == 1, fact
    assert "(coolable MUG)" not in facts
    assert sum(line.startswith("(pickupable") for line in lines) == 2  # not the lamp
    assert sum(line.startswith("(toggleable DeskLamp") for line in lines) == 1
    assert sum(line.startswith("(sliceable Apple") for line in lines) == 1
    assert sum(line.startswith("(openable Safe") for line in lines) == 1
    assert lines[-1] == "(:goal (MugType DeskType DeskLamp - x)))"
    assert "toggle_target" in task_content(room())["pddl_params"]


def test_wrong_orders_for_games_are_refused(tmp_path, monkeypatch):
    for options, message in (
        ({"splits": ["valid"]}, "no split 'valid'"),
        ({"size": "tiny"}, "'full' or 'small'"),
        ({"count": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            write_games(tmp_path, **({"count": 1} | options))
    read_source.cache_clear()
    monkeypatch.setitem(sys.modules, "alfworld", None)
    with pytest.raises(FiresteelError, match="pip install --no-deps 'alfworld"):
        write_games(tmp_path, count=1)
    assert not list(tmp_path.iterdir())


def test_a_place_where_nothing_can_be_written_is_said_before_a_game_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("firesteel.environments.alfworld.generate.check_installed", lambda: None)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="games cannot be written into '.*file': .*; name another directory"):
        write_games(tmp_path / "file", count=1)


def test_atoms_are_read_as_the_library_writes_them():
    class Raw:
        def __init__(self, name: str) -> None:
            self.name = name

    assert planners._read(Raw("Atom holds(agent1, mug_1)")) == (("holds", ("agent1", "mug_1")), True)
    assert planners._read(Raw("NegatedAtom new-axiom@0()")) == (("new-axiom@0", ()), False)
