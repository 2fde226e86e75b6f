"""How good a policy is: episodes without branching, success with intervals, and what exploration looked like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from firesteel.branching import Chain
from firesteel.config import Config, RolloutConfig
from firesteel.metrics import EpisodeRecord, SuccessRow, pass_at_k, success_table
from firesteel.policy import Policy, load_policy, load_tasks
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

    def summary(self) -> dict[str, Any]:
        """The figures a summary file holds: success with its Wilson interval, n, and the means."""
        row = self.overall
        result = {"split": self.split, "success": row.success, "low": row.low, "high": row.high, "n": row.n}
        result |= {"score": row.score, "steps": row.steps, "generated_tokens": row.tokens}
        result |= {"invalid": row.invalid, "repetition": row.repetition, "explore_ratio": row.explore_ratio}
        if len(self.pass_at) > 1:
            result["pass_at"] = {str(k): value for k, value in self.pass_at.items()}
        return result


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
           "fill_with_roots": False}
    )  # fmt: skip
    grower = policy.grower(config, Chain(), rollout=rollout)
    trees: list[Tree] = []
    size = max(1, batch_tasks // settings.samples)
    for start in range(0, len(tasks), size):
        trees += grower.grow(tasks[start : start + size], seed=settings.seed, iteration="evaluation")
        if on_progress is not None:
            on_progress(min(start + size, len(tasks)), len(tasks))
    records = [episode_record(tree, leaf) for tree in trees for leaf in tree.leaves]
    rows = success_table(records)
    return Evaluation(split, records, overall_row(rows), rows, pass_rates(trees, settings.samples), trees)


def overall_row(rows: Sequence[SuccessRow]) -> SuccessRow:
    """The row over everything, or over the one split's kinds."""
    return next(row for row in rows if row.kind == "all")


def pass_rates(trees: Sequence[Tree], samples: int) -> dict[int, float]:
    """Unbiased pass@k for k = 1, 2, 4, ... up to the number of samples, averaged over tasks."""
    ks = sorted({1, samples, *(2**power for power in range(1, 10) if 2**power < samples)})
    return {
        k: float(np.mean([pass_at_k(len(tree.leaves), sum(leaf.success for leaf in tree.leaves), k) for tree in trees]))
        for k in ks
    }


def evaluate(
    config: Config,
    *,
    split: str | None = None,
    policy: Policy | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates the configured model on a split (`evaluation.split` by default)."""
    split = split or config.evaluation.split
    tasks = load_tasks(config, split, config.evaluation.num_tasks)
    return evaluate_policy(policy or load_policy(config), config, tasks, split=split, on_progress=on_progress)
