"""The command line. Every command ends with a line that says where things lie, or with `--json` one JSON object."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from firesteel.cli_games import games_app
from firesteel.cli_models import evaluation_config
from firesteel.cli_output import console, finish, finite
from firesteel.cli_trajectories import judge_app, trajectories
from firesteel.config import Config, parse_overrides
from firesteel.errors import ConfigError, EnvironmentFailed, FiresteelError, StoreError

app = typer.Typer(
    help="Train tool-using language agents by reinforcement learning that explores on purpose.\n\n"
    "Start with `firesteel recipes`, then `firesteel train quickstart`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(trajectories)
app.add_typer(judge_app, name="judge")
app.add_typer(games_app, name="games")

SETTINGS = "Settings to replace, as key=value: `learner.lr=1e-4 seed=1`."
Settings = Annotated[list[str] | None, typer.Argument(help=SETTINGS)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object last, on standard output.")]


EXPERT = "expert"
CHECK_TIMEOUT = "Longest time in seconds for one call of its code; 0: no limit, and no process of its own (to debug)."
RECIPE = "A recipe's name (see `firesteel recipes`), a .py recipe or a .yaml config; none with --resume."


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help=RECIPE)] = None,
    settings: Settings = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run, exactly where it was cut off.")] = None,
    go_on: Annotated[bool, typer.Option("--continue", help="Recipes of several runs: keep finished ones.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Recipes of several runs: how many at a time.")] = 1,
    seeds: Annotated[int | None, typer.Option(min=1, help="Recipes that compare over seeds: how many.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the settings and what they cost; train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe. The run lies in `runs/NAME`; a killed one goes on with `--resume runs/NAME`."""
    from firesteel.progress import Progress
    from firesteel.recipes import load_recipe, run_recipe

    overrides = {} if resume else parse_overrides(settings or [])
    if seeds is not None and (resume is not None or (recipe or "").endswith((".yaml", ".yml"))):
        raise ConfigError("--seeds is for recipes that compare over seeds; one run has one seed: leave it out")
    if resume is not None:
        # A first argument that is a setting was read as the recipe.
        config = resumed_config(resume, [*([recipe] if recipe else []), *(settings or [])])
        start = partial(train_config, config, resume=True)
    elif recipe is None:
        raise ConfigError("name a recipe (`firesteel recipes` lists them), or a run to go on with: --resume runs/NAME")
    elif recipe.endswith((".yaml", ".yml")):
        config = Config.load(recipe).updated(overrides)
        start = partial(train_config, config)
    else:
        chosen = load_recipe(recipe)
        config = chosen.config().updated(overrides)
        start = partial(run_recipe, chosen, overrides, resume=go_on, jobs=jobs, seeds=seeds)
    if dry_run:
        finish(planned(config), as_json)
        return
    prepare()
    where = Path(config.runs_dir) / config.name
    console.print(f"training '{config.name}' in {where}", markup=False, highlight=False, soft_wrap=True)
    with Progress(console) as progress:
        summary = start(listen=progress)
    finish(summary, as_json)


def train_config(config: Config, **options: Any) -> dict[str, Any]:
    """`firesteel.train.train`, imported when everything that can be refused at once has been."""
    from firesteel.train import train

    return train(config, **options)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run directory, a model's directory or Hub name, or `expert`.")],
    settings: Settings = None,
    split: Annotated[str, typer.Option(help="Split(s) to play, separated by commas.")] = "validation",
    out: Annotated[Path | None, typer.Option(help="Also write the results there, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Play tasks without branching: success with 95% Wilson intervals, by split and task type.

    Example: `firesteel evaluate runs/quickstart --split l0,l1,l2 evaluation.samples=4`

    `firesteel evaluate expert` plays the environment's own expert: tool-calling tasks with their accepted answers.
    """
    from firesteel.environments.tool_calls.template import with_call_format
    from firesteel.evaluate import evaluate as evaluate_split
    from firesteel.expert_play import evaluate_expert, unsolved_text
    from firesteel.files import write_json_atomic
    from firesteel.policy import load_policy, load_tasks
    from firesteel.progress import Progress
    from firesteel.train import set_up_torch

    prepare(out)
    overrides = parse_overrides(settings or [])
    refuse_test_settings(overrides)
    is_expert = model == EXPERT and not Path(model).is_dir()
    config = with_call_format(Config().updated(overrides) if is_expert else evaluation_config(model, overrides))
    set_up_torch(config)
    policy = None if is_expert else load_policy(config)
    results: dict[str, Any] = {}
    records: list[Any] = []
    unsolved: list[Any] = []
    with Progress(console) as progress:
        for name in split.split(","):
            on_progress = partial(progress.playing, name)
            if policy is None:
                tasks = load_tasks(config, name, config.evaluation.num_tasks)
                result, left = evaluate_expert(config, tasks, split=name, on_progress=on_progress)
                unsolved += left
            else:
                result = evaluate_split(config, split=name, policy=policy, on_progress=on_progress)
            results[name] = result.summary()
            records += result.records
            progress.print(success_rows(result.rows))
            if len(result.pass_at) > 1:
                progress.print("  ".join(f"pass@{k} {value:.1%}" for k, value in result.pass_at.items()))
    results |= figures_of(config, records)
    if is_expert:
        results["unsolved"] = {one.task_id: one.reason for one in unsolved}
        results["text"] = "\n".join(filter(None, (results.get("text"), unsolved_text(unsolved))))
    if out is not None:
        write_json_atomic(out, finite(results))
        results["written"] = str(out)
    finish(results, as_json)


@app.command()
def rollout(
    model: Annotated[str, typer.Argument(help="A run directory, or a model's directory or Hub name.")],
    settings: Settings = None,
    tasks: Annotated[int, typer.Option(help="How many trees to grow.")] = 1,
    split: Annotated[str, typer.Option(help="Split that the tasks come from.")] = "validation",
    out: Annotated[Path | None, typer.Option(help="Also store the trees there, one JSON object a line.")] = None,
    as_json: Json = False,
) -> None:
    """Grow trees with a model and print them: what was seen, done, and where it branched."""
    from firesteel.draw import draw_tree
    from firesteel.environments.tool_calls.template import with_call_format
    from firesteel.files import write_atomic
    from firesteel.policy import grow_trees, load_policy, load_tasks
    from firesteel.report import rollout_metrics
    from firesteel.rewards import score_trees
    from firesteel.train import set_up_torch

    prepare(out)
    config = with_call_format(evaluation_config(model, parse_overrides(settings or [])))
    set_up_torch(config)
    trees = grow_trees(load_tasks(config, split, tasks), load_policy(config), config)
    score_trees(trees, config.reward, call_format=config.environment.options.get("format"))
    for tree in trees:
        Console(stderr=as_json).print(draw_tree(tree))
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    for (status, reason), count in Counter((leaf.status, leaf.failure) for leaf in leaves if leaf.failure).items():
        text = f"{status}, {count} of {len(leaves)} episodes: {reason}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    result: dict[str, Any] = rollout_metrics(trees, sum(tree.generated_tokens() for tree in trees))
    if out is not None:
        write_atomic(out, "".join(json.dumps(tree.to_dict()) + "\n" for tree in trees).encode())
        result["written"] = str(out)
    finish(result, as_json)
    if all(leaf.status == "failed" for leaf in leaves):
        raise EnvironmentFailed(f"every episode failed; `firesteel check {config.environment.name}` may say where")


@app.command()
def collect(
    out: Annotated[Path, typer.Argument(help="File to write, one episode a line.")],
    settings: Settings = None,
    count: Annotated[int, typer.Option(help="How many tasks to play.")] = 300,
    policy: Annotated[str, typer.Option(help="expert, or random (text for language pre-training).")] = "expert",
    annotator: Annotated[str, typer.Option(help="rules, or teacher (an OpenAI-compatible server).")] = "rules",
    base_url: Annotated[str, typer.Option(help="The teacher's address, such as http://localhost:8000/v1.")] = "",
    teacher: Annotated[str, typer.Option(help="The teacher's model name.")] = "",
    max_steps: Annotated[int, typer.Option(help="Longest episode.")] = 30,
    actions_from: Annotated[Path | None, typer.Option(help="Random play draws from this file's actions.")] = None,
    narrate: Annotated[bool, typer.Option(help="Random play says what the expert would think.")] = False,
    stale_share: Annotated[float, typer.Option(help="Share of random play's actions that may be impossible.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Collect episodes for a cold start and tag every step with `<explore>` or `<think>`."""
    from firesteel.coldstart import collect_episodes

    out.parent.mkdir(parents=True, exist_ok=True)
    config = Config().updated(parse_overrides(settings or []))
    result = collect_episodes(
        config, out, count=count, policy=policy, annotator=annotator, base_url=base_url, teacher=teacher,
        max_steps=max_steps, actions_from=actions_from, narrate=narrate, stale_share=stale_share,
        say=partial(console.print, markup=False, highlight=False),
    )  # fmt: skip
    finish(result, as_json)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes with one line each."""
    from firesteel.recipes import recipe_summaries

    lines = recipe_summaries()
    if as_json:
        print(json.dumps(lines))
        return
    table = Table("recipe", "what it does", box=None)
    for name, line in lines.items():
        table.add_row(name, line)
    Console().print(table)


@app.command()
def check(
    environment: Annotated[str, typer.Argument(help="A name such as household, or package.module:Class.")],
    settings: Annotated[list[str] | None, typer.Argument(help="The environment's options as key=value.")] = None,
    episodes: Annotated[int, typer.Option(help="Tasks to try.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps an episode.")] = 10,
    split: Annotated[str, typer.Option(help="Split that the tasks come from.")] = "train",
    action: Annotated[list[str] | None, typer.Option(help="What to draw from where actions are not listed.")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.0, help=CHECK_TIMEOUT)] = 60.0,
    as_json: Json = False,
) -> None:
    """Check an environment: reset, step and fork determinism, the fork's rung and its cost."""
    from firesteel.environments.check import check_named
    from firesteel.environments.check_process import check_in_process

    checked = partial(check_in_process, timeout_s=timeout_s) if timeout_s else check_named
    options = parse_overrides(settings or [])
    report = checked(environment, options, split=split, episodes=episodes, steps=steps, actions=action or ())
    Console(stderr=as_json).print(str(report), markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(report.to_dict()))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, what is missing, what it is for and how to get it; exit 1 if something required is."""
    from firesteel import doctor as diagnosis

    findings = diagnosis.diagnose()
    if as_json:
        print(json.dumps(diagnosis.report_dict(findings)))
    else:
        diagnosis.print_report(findings)
    raise typer.Exit(0 if diagnosis.is_ready(findings) else 1)


def prepare(out: Path | None = None) -> None:
    """Before long work: the folder of its output exists, and no progress bar of transformers is drawn into ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)


def resumed_config(run: Path, settings: list[str]) -> Config:
    """The stored configuration of a run that lies in `run` now, with some settings replaced."""
    if not (run / "config.yaml").exists():
        raise StoreError(f"'{run}' holds no run to resume (no config.yaml); name the directory of a run, runs/NAME")
    if settings and "=" not in settings[0]:
        raise ConfigError(f"--resume goes on with the run's own configuration; leave out the recipe '{settings[0]}'")
    config = Config.load(run / "config.yaml").updated(parse_overrides(settings))
    if (Path(config.runs_dir) / config.name).resolve() == run.resolve():
        return config
    place = run if run.name else run.resolve()
    return config.updated({"runs_dir": str(place.parent), "name": place.name})


def planned(config: Config) -> dict[str, Any]:
    """What `--dry-run` shows: all settings, and what they cost at most."""
    import yaml

    from firesteel.estimate import estimate

    settings, costs = config.model_dump(mode="json"), estimate(config)
    return {"settings": settings, **costs, "text": f"{yaml.safe_dump(settings, sort_keys=False)}\n{costs['text']}"}


def refuse_test_settings(overrides: dict[str, Any]) -> None:
    """Settings of the reports of a training, which `evaluate` would pass over."""
    instead = {"test_tasks": "evaluation.num_tasks=N", "test_split": "--split NAME", "split": "--split NAME"}
    given = overrides.get("evaluation")
    for key, other in instead.items():
        if isinstance(given, dict) and key in given:
            raise ConfigError(f"`evaluate` does not read evaluation.{key}; give {other}")


def figures_of(config: Any, records: list[Any]) -> dict[str, Any]:
    """What the environment says over all that was played, and a line for each of its figures."""
    from firesteel.environments import environment_class

    figures = environment_class(config.environment.name).figures(records, **config.environment.options)
    lines = [f"{name}: {'-' if value is None else f'{value:.4f}'}" for name, value in figures.items()]
    return {"figures": figures, "text": "\n".join(lines)} if figures else {}


def success_rows(rows: Any) -> Table:
    """A success table for people."""
    shares = ("invalid", "repeated", "explore")
    table = Table("split", "kind", "n", "success", "95% interval", "score", "steps", *shares, box=None)
    table.columns[4].no_wrap, table.columns[4].min_width = True, len("95% interval")
    for row in rows:
        interval = f"{row.low:.1%} - {row.high:.1%}"
        counts = (f"{row.score:.2f}", f"{row.steps:.1f}")
        percentages = (f"{share:.1%}" for share in (row.invalid, row.repetition, row.explore_ratio))
        table.add_row(row.split, row.kind, str(row.n), f"{row.success:.1%}", interval, *counts, *percentages)
    return table


def main() -> None:
    """Runs the command line; errors of the library are printed as one line, and the exit code is 1.

    `package.module:Class` is also looked for in the current directory, as `python -m` does.
    """
    warnings.formatwarning = lambda message, *where: f"warning: {message}\n"
    # Threads that spin while they wait for each other lose the core that they spin on to whoever else wants it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        app()
    except FiresteelError as error:
        line = escape(" ".join(str(error).split("\n")))
        console.print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)
        sys.exit(1)
