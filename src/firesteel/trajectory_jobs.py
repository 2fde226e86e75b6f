"""Trajectories from names alone: what `firesteel trajectories` and `firesteel judge compare` call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from firesteel.environments import environment_class
from firesteel.environments.question_rows import Question, question_of
from firesteel.environments.questions import QuestionEnvironment
from firesteel.errors import ConfigError, StoreError
from firesteel.judges import ToolRunner, make_judge
from firesteel.judges.compare import Agreement, compare_judges
from firesteel.judges.policy import model_mean_logprobs
from firesteel.openai_client import ChatClient
from firesteel.plugins import load
from firesteel.selection import make_selector
from firesteel.trajectories import (
    Parts,
    Summary,
    TrajectorySettings,
    cases,
    estimate,
    generate_trajectories,
    read_trajectories,
)
from firesteel.writers import WRITERS, Writer

ENVIRONMENT_PATHS = {
    "mmlu_pro": "firesteel.environments.mmlu_pro:MmluPro",
    "tool_questions": "firesteel.environments.tool_questions:ToolQuestions",
}


@dataclass(frozen=True, slots=True)
class TrajectoryJob:
    """Everything that a run needs, by name.

    `environment_options` are those of the environment, with `tools` and `tool_options` among them; `writer_options` are
    further arguments of the writer's constructor. `server` holds the
    arguments of `ChatClient` (`base_url`, `model`, ...) for a writer or a judge that is a language model;
    `writer_server` those of the writer, where it is another one. `policy` is a layer of `Config` with the `model` (and
    its `context`) of a writer or a judge that is named `policy`.
    """

    environment: str = "tool_questions"
    environment_options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"
    count: int | None = None
    writer: str = "template"
    writer_options: Mapping[str, Any] = field(default_factory=dict)
    judge: str = "rules"
    selector: str = "rarity_first"
    selector_options: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    writer_server: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    settings: TrajectorySettings = field(default_factory=TrajectorySettings)

    def description(self) -> dict[str, Any]:
        """What the rows depend on besides the settings, without addresses and keys."""
        return {
            "environment": self.environment,
            "environment_options": dict(self.environment_options),
            "split": self.split,
            "model": self.server.get("model"),
            "writer_model": (self.writer_server or self.server).get("model"),
            **({"policy": dict(self.policy)} if self.policy else {}),
            **({"writer_options": dict(self.writer_options)} if self.writer_options else {}),
        }


def load_environment(job: TrajectoryJob) -> type[QuestionEnvironment]:
    """The environment's class; `ConfigError` where it asks no questions."""
    cls = environment_class(ENVIRONMENT_PATHS.get(job.environment, job.environment))
    if not issubclass(cls, QuestionEnvironment):
        raise ConfigError(
            f"environment '{job.environment}' asks no multiple-choice questions; take {' or '.join(ENVIRONMENT_PATHS)}"
        )
    return cls


def load_job_questions(job: TrajectoryJob) -> list[Question]:
    """The questions of a job; `ConfigError` where there are none."""
    tasks = load_environment(job).tasks(job.split, count=job.count, **job.environment_options)
    if not tasks:
        raise ConfigError(f"split '{job.split}' of environment '{job.environment}' has no question with these options")
    return [question_of(task) for task in tasks]


@contextmanager
def opened_parts(job: TrajectoryJob, questions: Sequence[Question]) -> Iterator[tuple[Parts, Mapping[str, Any]]]:
    """The parts of a job, and what further judges can be made with; connections are closed at the end."""
    tools = load_environment(job)(**job.environment_options).tools
    runner = ToolRunner(tools)
    with ExitStack() as stack:
        client = stack.enter_context(ChatClient(**job.server)) if job.server else None
        second = stack.enter_context(ChatClient(**job.writer_server)) if job.writer_server else client
        key = {question.question_id: question.answer_index for question in questions}
        given: dict[str, Any] = {"runner": runner, "key": key, "client": client}
        policy = _load_policy(job.policy) if job.policy else None
        if policy is not None:
            given["mean_logprobs"] = model_mean_logprobs(policy.model, policy.tokenizer)
        judge, selector = make_judge(job.judge, **given), make_selector(job.selector, job.selector_options)
        yield Parts(tools, _make_writer(job.writer, job.writer_options, second, policy), judge, selector, runner), given


def run_job(
    job: TrajectoryJob, directory: Path | str, *, on_progress: Callable[[int, int], None] | None = None
) -> Summary:
    """Writes the job's trajectories, or goes on with them (`generate_trajectories`)."""
    questions = load_job_questions(job)
    with opened_parts(job, questions) as (parts, _):
        return generate_trajectories(
            questions, parts, directory, job.settings,
            description=job.description(), split=job.split, on_progress=on_progress,
        )  # fmt: skip


def dry_run(job: TrajectoryJob, *, prompt_price: float = 0.0, completion_price: float = 0.0) -> dict[str, float]:
    """What the job would cost with an `llm` judge (`estimate`); nothing is sent. Prices are for a million tokens."""
    tools = load_environment(job)(**job.environment_options).tools
    prices = {"prompt_price": prompt_price, "completion_price": completion_price}
    return estimate(load_job_questions(job), tools, job.settings, **prices)


def compare_job(job: TrajectoryJob, directory: Path | str, other: str, *, steps: int = 200) -> Agreement:
    """How the job's judge agrees with another one on the first stored steps of a directory.

    Raises:
        StoreError: the directory holds no trajectory.
    """
    questions = load_job_questions(job)
    with opened_parts(job, questions) as (parts, given):
        chosen = list(islice(cases(read_trajectories(Path(directory) / "rows.jsonl")), steps))
        if not chosen:
            raise StoreError(f"'{directory}' holds no trajectory; generate some first")
        return compare_judges(parts.judge, make_judge(other, **given), chosen, parts.selector)


def _make_writer(name: str, options: Mapping[str, Any], client: ChatClient | None, policy: Any) -> Writer:
    """A writer by name; its constructor takes a client, a policy, or nothing at all, and options by name."""
    cls = load(name, WRITERS, kind="writer")
    wanted = inspect.signature(cls).parameters
    unknown = [option for option in options if option not in wanted or option in ("client", "policy")]
    if unknown:
        known = ", ".join(option for option in wanted if option not in ("client", "policy")) or "none"
        raise ConfigError(f"writer '{name}' has no option '{unknown[0]}'; its options: {known}")
    if "client" in wanted and client is None:
        raise ConfigError(f"writer '{name}' needs a server: give base_url and model")
    if "policy" in wanted and policy is None:
        raise ConfigError(f"writer '{name}' needs a model in this process: give policy={{'model': {{'path': ...}}}}")
    given = [part for part_name, part in (("client", client), ("policy", policy)) if part_name in wanted]
    writer: Writer = cls(*given, **options)
    return writer


def _load_policy(layer: Mapping[str, Any]) -> Any:
    from firesteel.config import Config
    from firesteel.policy import load_policy

    return load_policy(Config.build(layer))
