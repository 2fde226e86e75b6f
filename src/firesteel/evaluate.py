"""How good a policy is: episodes without branching, success with intervals, and what exploration looked like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from firesteel.branching import Chain
from firesteel.config import Config, RolloutConfig
from firesteel.environments import environment_class
from firesteel.environments.tool_calls.template import with_call_format
from firesteel.errors import TaskError
from firesteel.metrics import ALL_KINDS, EpisodeRecord, SuccessRow, pass_at_k, success_table
from firesteel.policy import Policy, load_policy, load_tasks
from firesteel.report import mean
from firesteel.tree import Leaf, Tree
from firesteel.types import Task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results on one set of tasks. `overall` is the row over all of them; `rows` by split and kind."""

    split: str
    records: list[EpisodeRecord]
    overall: SuccessRow
    rows: list[SuccessRow]
    pass_at: dict[int, float]
    trees: list[Tree]
    outvoted_tokens: int = 0
    figures: dict[str, float | None] = field(default_factory=dict)
    """What the environment says beside (`Environment.figures`)."""

    def summary(self) -> dict[str, Any]:
        """The figures a summary file holds: success with its Wilson interval, n, and the means; None for a NaN.

        `outvoted_tokens` (per episode, with `evaluation.vote`) were sampled beside `generated_tokens`.
        """
        row = self.overall.as_json()
        names = ("success", "low", "high", "n", "failed", "score", "steps")
        result: dict[str, Any] = {"split": self.split} | {name: row[name] for name in names}
        result |= {"generated_tokens": row["tokens"]}
        result |= {name: row[name] for name in ("invalid", "repetition", "explore_ratio")}
        if self.outvoted_tokens:
            result["outvoted_tokens"] = self.outvoted_tokens / len(self.records)
        if len(self.pass_at) > 1:
            result["pass_at"] = {str(k): None if math.isnan(rate) else rate for k, rate in self.pass_at.items()}
        return result | ({"figures": self.figures} if self.figures else {})


def episode_record(tree: Tree, leaf: Leaf) -> EpisodeRecord:
    """What reports keep of one leaf."""
    episode = tree.episode(leaf)
    return EpisodeRecord(
        task_id=tree.task.id,
        kind=tree.task.kind,
        split=tree.task.split,
        success=leaf.success,
        score=leaf.score,
        steps=len(episode.steps),
        generated_tokens=episode.generated_tokens,
        invalid_actions=sum(not (step.valid and step.understood) for step in episode.steps),
        actions=tuple(step.action for step in episode.steps),
        explore_flags=tuple(step.explore for step in episode.steps),
        status="truncated" if leaf.status == "overflow" else leaf.status,  # type: ignore[arg-type]
        observations=tuple([tree.observation, *(step.observation for step in episode.steps)][: len(episode.steps)]),
    )


def evaluate_policy(
    policy: Policy,
    config: Config,
    tasks: Sequence[Task],
    *,
    split: str = "",
    batch_tasks: int = 128,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Plays `config.evaluation.samples` episodes of every task, without branching.

    With `evaluation.vote`, an explore step is followed by a vote over B sampled next steps (Section 5 of SPARK,
    test-time branching): no fork and no reward is used.
    """
    settings = config.evaluation
    rollout = RolloutConfig.model_validate(
        config.rollout.model_dump()
        | {"criterion": "chain", "criterion_options": {}, "num_leaves": settings.samples,
           "num_roots": settings.samples, "temperature": settings.temperature, "vote": settings.vote,
           "fill_with_roots": False, "candidates": 1}
    )  # fmt: skip
    grower = policy.grower(config, Chain(), rollout=rollout)
    trees: list[Tree] = []
    size = max(1, batch_tasks // settings.samples)
    for start in range(0, len(tasks), size):
        trees += grower.grow(tasks[start : start + size], seed=settings.seed, iteration="evaluation")
        if on_progress is not None:
            on_progress(min(start + size, len(tasks)), len(tasks))
    records = [episode_record(tree, leaf) for tree in trees for leaf in tree.leaves]
    environment = config.environment
    return Evaluation(
        split, records, overall_row(records, split), success_table(records), pass_rates(trees, settings.samples), trees,
        grower.stats.outvoted_tokens, environment_class(environment.name).figures(records, **environment.options),
    )  # fmt: skip


def overall_row(records: Sequence[EpisodeRecord], split: str) -> SuccessRow:
    """The row over all records, whatever their splits and kinds."""
    if not records:
        raise TaskError(f"there is nothing to evaluate: no task of split '{split}' was given")
    return success_table(replace(record, split=split, kind=ALL_KINDS) for record in records)[-1]


def pass_rates(trees: Sequence[Tree], samples: int) -> dict[int, float]:
    """Unbiased pass@k for k = 1, 2, 4, ... up to the number of samples, averaged over tasks.

    Failed episodes do not count; a task counts for the k of which it has so many others. NaN where none has.
    """
    ks = sorted({1, samples, *(2**power for power in range(1, 10) if 2**power < samples)})
    played = [[leaf.success for leaf in tree.leaves if leaf.status != "failed"] for tree in trees]
    return {k: mean([pass_at_k(len(won), sum(won), k) for won in played if len(won) >= k]) for k in ks}


def evaluate(
    config: Config,
    *,
    split: str | None = None,
    policy: Policy | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates the configured model on a split (`evaluation.split` by default)."""
    config = with_call_format(config)
    split = split or config.evaluation.split
    tasks = load_tasks(config, split, config.evaluation.num_tasks)
    return evaluate_policy(policy or load_policy(config), config, tasks, split=split, on_progress=on_progress)
