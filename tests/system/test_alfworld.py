"""ALFWorld's engine against the stock one: the same texts and commands, games that are won, forks that change nothing.

Needs the planner library; the comparisons also need TextWorld and ALFWorld.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firesteel.cli import app
from firesteel.environments.alfworld import AlfWorld
from firesteel.environments.alfworld import engine as engines
from firesteel.environments.alfworld.engine import Position, close_engine, names_of, open_engine
from firesteel.environments.alfworld.games import FOLDERS, GAME_FILE, KINDS, RELEASE, TASK_FILE, read_game
from firesteel.environments.alfworld.generate import HOW_TO_INSTALL as HOW_TO_INSTALL_RULES
from firesteel.environments.alfworld.generate import write_games
from firesteel.environments.alfworld.planner import HOW_TO_INSTALL
from firesteel.environments.check import check_environment
from firesteel.errors import EnvironmentFailed, TaskError
from firesteel.types import Task

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(importlib.util.find_spec("fast_downward") is None, reason=HOW_TO_INSTALL),
    pytest.mark.skipif(importlib.util.find_spec("alfworld") is None, reason=HOW_TO_INSTALL_RULES),
    pytest.mark.filterwarnings("ignore"),
]

NUM_ROLLOUTS = int(os.environ.get("FIRESTEEL_ALFWORLD_ROLLOUTS", "6"))
"""How many random rollouts are compared with the stock engine, which takes about 60 ms a step."""


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six games of each split, or those of FIRESTEEL_ALFWORLD_GAMES."""
    given = os.environ.get("FIRESTEEL_ALFWORLD_GAMES")
    if given:
        return Path(given)
    out = tmp_path_factory.mktemp("games")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRESTEEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert write_games(out, count=6, size="small") == {"train": 6, "validation": 6, "test": 6}
    return out


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Importing ALFWorld makes a folder where ALFWORLD_DATA says, else in the user's home."""
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "alfworld"))
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def tasks_of(games: Path) -> list[Task]:
    return [task for split in ("train", "validation", "test") for task in AlfWorld.tasks(split, games=games)]


def test_texts_and_commands_are_those_of_the_stock_engine(games: Path) -> None:
    textworld = pytest.importorskip("textworld", reason="needs TextWorld: tools/install_alfworld.sh PYTHON")
    alfworld = pytest.importorskip(
        "alfworld.agents.environment.alfred_tw_env", reason="needs ALFWorld: tools/install_alfworld.sh PYTHON"
    )
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    tasks = tasks_of(games)
    for number in range(NUM_ROLLOUTS):
        game = read_game(tasks[number % len(tasks)].data["game"])
        rng = random.Random(number)
        stock = textworld.start(game.name.split("'")[1], infos, wrappers=[alfworld.AlfredDemangler()])
        state = stock.reset()
        engine = open_engine(game)
        position = engine.start
        assert state.feedback == engine.introduction()
        for _ in range(12):
            assert tuple(state["admissible_commands"]) == position.commands
            assert state["won"] == position.is_won
            if position.is_won:
                break
            command = rng.choice([*position.commands, "dance with the fridge 1"])
            state, _, _ = stock.step(command)
            position, text = engine.play(position, command)
            assert state.feedback == text
        close_engine(engine)


def test_the_stock_engine_is_won_by_every_walkthrough(games: Path) -> None:
    textworld = pytest.importorskip("textworld", reason="needs TextWorld: tools/install_alfworld.sh PYTHON")
    alfworld = pytest.importorskip(
        "alfworld.agents.environment.alfred_tw_env", reason="needs ALFWorld: tools/install_alfworld.sh PYTHON"
    )
    kinds = set()
    for task in tasks_of(games)[: int(os.environ.get("FIRESTEEL_ALFWORLD_WINS", "18"))]:
        game = read_game(task.data["game"])
        infos = textworld.EnvInfos(won=True)
        stock = textworld.start(game.name.split("'")[1], infos, wrappers=[alfworld.AlfredDemangler()])
        stock.reset()
        done = False
        for command in game.walkthrough:
            assert not done
            _, _, done = stock.step(command)
        assert done, game.name
        kinds.add(game.kind)
    assert kinds == set(KINDS)


@pytest.mark.parametrize("split", ["train", "eval_in_distribution", "eval_out_of_distribution"])
def test_alfworld_accepts_the_generated_games(games: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alfworld = pytest.importorskip(
        "alfworld.agents.environment.alfred_tw_env", reason="needs ALFWorld: tools/install_alfworld.sh PYTHON"
    )
    names = {"data_path": "train", "eval_id_data_path": "valid_seen", "eval_ood_data_path": "valid_unseen"}
    paths = {key: str(games / RELEASE / name) for key, name in names.items()}
    config = {
        "env": {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6], "domain_randomization": False},
        "dataset": paths | {"num_train_games": -1, "num_eval_games": -1},
    }
    found = alfworld.AlfredTWEnv(config, train_eval=split).game_files
    own = {"train": "train", "eval_in_distribution": "validation", "eval_out_of_distribution": "test"}[split]
    assert sorted(found) == [str(Path(task.data["game"], GAME_FILE)) for task in AlfWorld.tasks(own, games=games)]


def test_the_contract_is_kept(games: Path) -> None:
    report = check_environment(
        partial(AlfWorld, games=games), AlfWorld.tasks("train", games=games, count=6), episodes=6, steps=12
    )
    assert (report.fork_rung, report.num_episodes) == ("native", 6)


def test_parent_and_fork_play_the_same(games: Path) -> None:
    """A fork at a random step; then both play the same ten actions, in an order drawn by lot."""
    tasks = tasks_of(games)
    num_same, num_trials = 0, int(os.environ.get("FIRESTEEL_ALFWORLD_FORKS", "100"))
    for trial in range(num_trials):
        rng = random.Random(trial)
        with closing(AlfWorld()) as parent:
            shown = parent.reset(tasks[trial % len(tasks)], seed=0)
            for _ in range(rng.randrange(15)):
                result = parent.step(rng.choice(shown.admissible or ()))
                if result.terminated:
                    shown = parent.reset(tasks[trial % len(tasks)], seed=0)
                    continue
                shown = result.observation
            with closing(parent.fork()) as child:
                num_same += _play_the_same(parent, child, rng)
    print(f"{num_same} of {num_trials} forks the same")
    assert num_same == num_trials


def _play_the_same(parent: AlfWorld, child: AlfWorld, rng: random.Random) -> bool:
    first, second = (parent, child) if rng.random() < 0.5 else (child, parent)
    actions, results = [], []
    assert first._position is not None
    commands = first._position.commands
    while len(actions) < 10:
        actions.append(rng.choice(commands))
        results.append(first.step(actions[-1]))
        commands = results[-1].observation.admissible or ()
        if results[-1].terminated:
            break
    return [second.step(action) for action in actions] == results


def test_the_expert_wins_from_anywhere_and_gives_reasons(games: Path) -> None:
    for number, task in enumerate(AlfWorld.tasks("train", games=games)):
        rng = random.Random(number)
        with closing(AlfWorld()) as environment:
            shown = environment.reset(task, seed=0)
            assert environment.goal.endswith(".") and environment.goal in Path(task.data["game"], GAME_FILE).read_text(
                encoding="utf-8"
            )
            for _ in range(3):
                shown = environment.step(rng.choice(shown.admissible or ())).observation
            steps = []
            while (step := environment.expert()) is not None:
                steps.append(step)
                result = environment.step(step.action)
            assert result.terminated and result.info == {"success": True, "score": 1.0, "valid": True}
            assert all(step.reason and len(step.reason.split()) <= 6 for step in steps) and len(steps) < 20


def test_environments_of_a_game_share_a_planner_and_leave_it_to_the_next(games: Path) -> None:
    first, second = AlfWorld.tasks("train", games=games)[:2]
    one, two = AlfWorld(), AlfWorld()
    one.reset(first, seed=0)
    two.reset(first, seed=0)
    assert one._engine is two._engine and len(engines._in_use) == 1
    planner = one._engine.planner if one._engine else None
    one.step("look")
    one.close()
    two.step("inventory")
    two.close()
    two.close()
    assert not engines._in_use
    one.reset(second, seed=0)
    assert one._engine is not None and one._engine.planner is planner
    one.close()


def test_many_games_at_once_and_again(games: Path) -> None:
    """Copies of the library must not be unloaded: the next one would crash the process."""
    for _ in range(2):
        environments = [AlfWorld() for _ in range(12)]
        for environment, task in zip(environments, tasks_of(games), strict=False):
            environment.reset(task, seed=0)
        for environment in environments:
            assert environment.step("look").info["valid"]
            environment.close()


def test_the_command_writes_games(tmp_path: Path) -> None:
    arguments = ["games", "alfworld", "--out", str(tmp_path), "--count", "1", "--split", "test", "--size", "small"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(result.stdout.splitlines()[-1])["games"] == {"test": 1}
    (task,) = AlfWorld.tasks("test", games=tmp_path)
    assert task.kind == KINDS[0]


def test_generated_games_depend_on_their_number_alone(games: Path, tmp_path: Path) -> None:
    if os.environ.get("FIRESTEEL_ALFWORLD_GAMES"):
        pytest.skip("the games that were given may have been made otherwise")
    write_games(tmp_path, count=2, splits=["train"], size="small")
    for path in sorted(tmp_path.rglob(GAME_FILE)):
        assert path.read_bytes() == (games / path.relative_to(tmp_path)).read_bytes()
        assert path.with_name(TASK_FILE).exists()
    assert FOLDERS["train"] in {path.name for path in (tmp_path / RELEASE).iterdir()}


def test_names_are_those_of_the_stock_demangler(games: Path) -> None:
    misc = pytest.importorskip("alfworld.agents.utils.misc", reason="needs ALFWorld: tools/install_alfworld.sh PYTHON")
    engine = open_engine(read_game(tasks_of(games)[0].data["game"]))
    ids = list(engine.rules.things.entities)
    close_engine(engine)
    infos = {id: type("Info", (), {"id": id}) for id in ids}
    demangler = misc.Demangler(game_infos=infos)
    assert names_of(ids) == {id: demangler.demangle_alfred_name(id) for id in ids}


def test_problems_that_are_no_pddl_are_refused(games: Path, tmp_path: Path) -> None:
    task = tasks_of(games)[0]
    source = Path(task.data["game"])
    arguments = list(sys.argv)
    for old, new, message in (
        ("(:init", "(:inti", "cannot be translated"),
        ("action GotoLocation", "aktion GotoLocation", "has 'aktion' where"),
        ("Your task is to", "Your task was to", "does not say what its task is"),
    ):
        folder = tmp_path / message.replace(" ", "_")
        folder.mkdir()
        (folder / TASK_FILE).write_bytes((source / TASK_FILE).read_bytes())
        (folder / GAME_FILE).write_text((source / GAME_FILE).read_text(encoding="utf-8").replace(old, new))
        with closing(AlfWorld()) as environment, pytest.raises(TaskError, match=message):
            environment.reset(Task("damaged", data={"game": str(folder)}), seed=0)
    assert sys.argv == arguments


def test_an_interrupted_step_changes_nothing(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out may come between the planner's step and ours: the environment is where it was."""
    with closing(AlfWorld()) as environment:
        shown = environment.reset(tasks_of(games)[0], seed=0)
        command = next(each for each in shown.admissible or () if each.startswith("go to"))
        before = environment.step("look")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(engines.Engine, "_position", _interrupt)
            environment.step(command)
        assert environment.step("look") == before


def _interrupt(self: engines.Engine, facts: object) -> Position:
    raise KeyboardInterrupt


def test_stepping_before_reset_and_after_the_end_is_refused(games: Path) -> None:
    with closing(AlfWorld()) as environment:
        with pytest.raises(EnvironmentFailed, match="before its first reset"):
            environment.step("look")
        environment.reset(tasks_of(games)[0], seed=0)
        while (step := environment.expert()) is not None:
            environment.step(step.action)
        with pytest.raises(EnvironmentFailed, match="after its episode had ended"):
            environment.step("look")
