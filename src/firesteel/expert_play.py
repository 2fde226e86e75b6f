"""The environment's expert in the place of a model: what `firesteel evaluate expert` plays.

Where the expert writes the accepted answers (`tool_calls`, `bfcl`), success says whether the checker accepts them, and
what is unsolved is a list of label errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from firesteel.annotate import Rejection
from firesteel.config import Config
from firesteel.environments import environment_class
from firesteel.environments.base import Environment
from firesteel.environments.pool import environment_maker
from firesteel.errors import EnvironmentFailed
from firesteel.evaluate import Evaluation, overall_row
from firesteel.guard import guarded
from firesteel.metrics import EpisodeRecord, EpisodeStatus, success_table
from firesteel.types import StepResult, Task


def evaluate_expert(
    config: Config,
    tasks: Sequence[Task],
    *,
    split: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, list[Rejection]]:
    """One episode of every task, of at most `rollout.max_turns` steps, and why each unsolved one is that.

    Episodes have no tokens and no trees.
    """
    make = environment_maker(config.environment)
    records: list[EpisodeRecord] = []
    unsolved: list[Rejection] = []
    for task in tasks:
        record, reason = play_task(make, task, config.rollout.max_turns, config.environment.step_timeout_s)
        records.append(record)
        if reason is not None:
            unsolved.append(Rejection(task.id, reason))
        if on_progress is not None:
            on_progress(len(records), len(tasks))
    options = config.environment.options
    figures = environment_class(config.environment.name).figures(records, **options)
    overall = overall_row(records, split)
    evaluation = Evaluation(
        split, records, overall, success_table(records), {1: overall.success}, [], figures=figures
    )  # fmt: skip
    return evaluation, unsolved


def play_task(
    make: Callable[[], Environment], task: Task, max_turns: int, timeout_s: float
) -> tuple[EpisodeRecord, str | None]:
    """The record of the expert's episode, and why it is no success (None where it is one)."""
    actions: list[str] = []
    observations: list[str] = []
    flags: list[bool] = []
    last: StepResult | None = None
    status: EpisodeStatus = "finished"
    reason: str | None = None
    invalid = 0
    environment = make()
    try:
        with guarded(f"task '{task.id}'", timeout_s):
            seen = environment.reset(task, seed=task.seed)
            while last is None or not (last.terminated or last.truncated):
                step = environment.expert()
                if step is None or len(actions) == max_turns:
                    status = "truncated"
                    reason = "there is no expert" if step is None else f"not done in {max_turns} steps"
                    break
                observations.append(seen.text)
                actions.append(step.action)
                flags.append(step.explore)
                last = environment.step(step.action)
                invalid += not last.info.get("valid", True)
                seen = last.observation
    except EnvironmentFailed as error:
        status, reason = "failed", str(error)
    finally:
        environment.close()
    info = last.info if last is not None and status == "finished" else {}
    success = bool(info.get("success", False))
    if not success and reason is None:
        reason = str(info.get("problem") or "the answer is not accepted")
    record = EpisodeRecord(
        task.id, task.kind, task.split, success, float(info.get("score", success)), len(actions), 0, invalid,
        tuple(actions), tuple(flags), status, tuple(observations),
    )  # fmt: skip
    return record, reason


def unsolved_text(unsolved: Sequence[Rejection]) -> str:
    """A line for each task that the expert did not solve; "" where there is none."""
    if not unsolved:
        return ""
    lines = [f"the expert does not solve {len(unsolved)} tasks:"]
    return "\n".join([*lines, *(f"  {one.task_id}: {one.reason}" for one in unsolved)])
