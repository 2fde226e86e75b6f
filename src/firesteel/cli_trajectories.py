"""The commands `trajectories` and `judge compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from firesteel.cli_models import evaluation_config
from firesteel.cli_output import console, finish
from firesteel.config import parse_overrides
from firesteel.errors import ConfigError, FiresteelError

judge_app = typer.Typer(help="Compare judges.", no_args_is_help=True)

Settings = Annotated[list[str] | None, typer.Argument(help="The environment's options as key=value.")]
Environment = Annotated[str, typer.Option(help="tool_questions, mmlu_pro, or your own, package.module:Class.")]
Split = Annotated[str, typer.Option(help="Split that the questions come from.")]
Count = Annotated[int | None, typer.Option(help="How many questions; all without it.")]
JudgeName = Annotated[str, typer.Option(help="rules, rules_with_key, llm, policy, or your own.")]
BaseUrl = Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, for `llm`.")]
Model = Annotated[str, typer.Option(help="The server's model; without a server, as --policy.")]
PolicyModel = Annotated[str, typer.Option(help="The model of `policy`: a run, a model's directory or Hub name.")]
Rate = Annotated[float | None, typer.Option(help="Most requests to a server in a minute.")]
Cache = Annotated[Path | None, typer.Option(help="Folder that keeps the server's answers.")]
Budget = Annotated[int | None, typer.Option(help="Most tokens to spend on the server.")]
Selector = Annotated[str, typer.Option(help="rarity_first, usage_rarity, best, sample, uniform, or your own.")]
Threshold = Annotated[float, typer.Option(help="An action must score above it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object last, on standard output.")]


def trajectories(
    directory: Annotated[Path, typer.Argument(help="Directory to write, or to go on with.")],
    settings: Settings = None,
    environment: Environment = "tool_questions",
    split: Split = "train",
    count: Count = None,
    writer: Annotated[str, typer.Option(help="template, llm, policy, or your own.")] = "template",
    writer_option: Annotated[
        list[str] | None,
        typer.Option(help="For the writer, key=value. template: slips, guess; others: temperature, max_tokens."),
    ] = None,
    writer_base_url: Annotated[str, typer.Option(help="The writer's server, where it has its own.")] = "",
    writer_model: Annotated[str, typer.Option(help="The model on the writer's server.")] = "",
    judge: JudgeName = "rules",
    selector: Selector = "rarity_first",
    threshold: Threshold = 6.0,
    steps: Annotated[int, typer.Option(help="Steps a question.")] = 5,
    samples: Annotated[int, typer.Option(help="Trajectories a question.")] = 1,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    connections: Annotated[int, typer.Option(help="Questions worked on at a time.")] = 8,
    base_url: BaseUrl = "",
    model: Model = "",
    policy: PolicyModel = "",
    cache: Cache = None,
    budget_tokens: Budget = None,
    requests_per_minute: Rate = None,
    prompt_price: Annotated[float, typer.Option(help="`--dry-run`: price of a million prompt tokens.")] = 0.0,
    completion_price: Annotated[float, typer.Option(help="`--dry-run`: price of a million completion tokens.")] = 0.0,
    dry_run: Annotated[bool, typer.Option(help="Say what it would cost; send and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write judged trajectories of multiple-choice questions; a cut-off directory is gone on with.

    Example: `firesteel trajectories rows --count 200 --selector rarity_first`
    """
    from firesteel.trajectories import TrajectorySettings
    from firesteel.trajectory_jobs import TrajectoryJob, run_job
    from firesteel.trajectory_jobs import dry_run as price

    limits = {"cache_dir": cache, "budget_tokens": budget_tokens, "requests_per_minute": requests_per_minute}
    made = TrajectoryJob(
        environment=environment, environment_options=parse_overrides(settings or []), split=split, count=count,
        writer=writer, writer_options=parse_overrides(writer_option or []), judge=judge,
        selector=selector, selector_options={"threshold": threshold},
        server=server_options(base_url, model, limits),
        writer_server=writer_server_options(writer_base_url or base_url, writer_base_url, writer_model, limits),
        policy=policy_layer(base_url, model, policy, {writer, judge}),
        settings=TrajectorySettings(steps=steps, samples=samples, seed=seed, connections=connections),
    )  # fmt: skip
    if dry_run:
        found = price(made, prompt_price=prompt_price, completion_price=completion_price)
        lines = (f"{name.replace('_', ' ')}: {value:,}" for name, value in found.items())
        finish(found | {"text": "\n".join(lines)}, as_json)
        return
    with console.status(f"0 of {count or 'all'} questions") as status:
        summary: dict[str, Any] = asdict(run_job(made, directory, on_progress=partial(_tell, status)))
    told = f"the last: {summary['last_failure']}; {directory / 'failures.jsonl'} has all"
    if summary["failed"] and not summary["trajectories"] + summary["skipped"]:
        raise FiresteelError(f"every question failed, {summary['failed']} in all; {told}")
    counts = ("trajectories", "skipped", "failed", "correct", "rows")
    summary["text"] = ", ".join(f"{summary[name]} {name}" for name in counts)
    if summary["failed"]:
        summary["text"] += f"\n{told}; the same command tries them again"
    finish(summary | {"written": str(directory / "rows.jsonl")}, as_json)


def _tell(status: Any, done: int, of: int) -> None:
    status.update(f"{done} of {of} questions")


@judge_app.command("compare")
def compare(
    directory: Annotated[Path, typer.Argument(help="Directory of trajectories, as `firesteel trajectories` writes.")],
    other: Annotated[str, typer.Argument(help="The judge to compare with.")],
    settings: Settings = None,
    judge: JudgeName = "rules",
    environment: Environment = "tool_questions",
    split: Split = "train",
    count: Count = None,
    selector: Selector = "rarity_first",
    threshold: Threshold = 6.0,
    steps: Annotated[int, typer.Option(help="How many stored steps both judge.")] = 200,
    base_url: BaseUrl = "",
    model: Model = "",
    policy: PolicyModel = "",
    cache: Cache = None,
    budget_tokens: Budget = None,
    requests_per_minute: Rate = None,
    as_json: Json = False,
) -> None:
    """How far two judges agree on the same stored steps: ranks, scores, choices and verdicts.

    Example: `firesteel judge compare rows rules_with_key`
    """
    from firesteel.trajectory_jobs import TrajectoryJob, compare_job

    limits = {"cache_dir": cache, "budget_tokens": budget_tokens, "requests_per_minute": requests_per_minute}
    made = TrajectoryJob(
        environment=environment, environment_options=parse_overrides(settings or []), split=split, count=count,
        judge=judge, selector=selector, selector_options={"threshold": threshold},
        server=server_options(base_url, model, limits),
        policy=policy_layer(base_url, model, policy, {judge, other}),
    )  # fmt: skip
    found = asdict(compare_job(made, directory, other, steps=steps))
    shown = (f"{name.replace('_', ' ')}: {value:.3f}" for name, value in found.items() if name != "n")
    finish({**found, "text": "\n".join([f"steps: {found['n']}", *shown])}, as_json)


def server_options(base_url: str, model: str, limits: Mapping[str, Any], *, prefix: str = "--") -> dict[str, Any]:
    """The arguments of `ChatClient`; empty where no server is named.

    Raises:
        ConfigError: an address without a model.
    """
    if not base_url:
        return {}
    if not model:
        raise ConfigError(f"{prefix}base-url {base_url} needs {prefix}model: which of the server's models to ask")
    return {"base_url": base_url, "model": model} | {name: value for name, value in limits.items() if value is not None}


def writer_server_options(base_url: str, own: str, model: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the writer's client; empty where it has neither a server nor a model of its own."""
    if model and not base_url:
        raise ConfigError(f"--writer-model {model} is a model on a server: give --writer-base-url, or --policy {model}")
    return server_options(base_url, model, limits, prefix="--writer-") if own or model else {}


def policy_layer(base_url: str, model: str, policy: str, parts: set[str]) -> dict[str, Any]:
    """The settings of the model of `policy` parts: `--policy`, or `--model` where there is no server.

    Raises:
        ConfigError: a part is `policy`, and no model is named.
    """

    name = policy or ("" if base_url or "policy" not in parts else model)
    if not name:
        if "policy" in parts:
            raise ConfigError(
                "'policy' writes and judges with a model in this process: give --policy, a run or a model"
            )
        return {}
    settings = evaluation_config(name, {}).model_dump(mode="json")
    return {"model": settings["model"], "context": settings["context"]}
