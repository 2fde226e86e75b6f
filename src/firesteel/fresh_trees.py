"""The trees of one training step before their advantages: probing, growing, scoring, and rescuing failed groups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from firesteel.demonstrations import StoredTrees
from firesteel.probing import GrowerPlay
from firesteel.rescue import RescueContext
from firesteel.rewards import score_trees
from firesteel.self_exemplifying import self_exemplifying_metrics
from firesteel.stability import reward_by_label
from firesteel.tree import Tree
from firesteel.types import Task

if TYPE_CHECKING:
    from firesteel.train import Session


def grow_scored(session: Session, tasks: Sequence[Task], step: int, name: str = "") -> list[Tree]:
    """One tree a task, grown and scored; its tokens and leaves count. `name` tells what is grown again in a step."""
    assert session.grower is not None
    before = session.grower.stats.outvoted_tokens
    trees = session.grower.grow(
        tasks, seed=session.config.seed, iteration=f"{step}/{name}" if name else step,
        on_progress=lambda active, done: session.listen("rollout", {"active": active, "finished": done}),
    )  # fmt: skip
    score_trees(trees, session.config.reward, step=step, call_format=session.config.environment.options.get("format"))
    session.generated_tokens += sum(tree.generated_tokens() for tree in trees)
    session.generated_tokens += session.grower.stats.outvoted_tokens - before
    session.leaves += sum(len(tree.leaves) for tree in trees)
    return trees


def probe_if_due(session: Session, step: int) -> dict[str, float]:
    """Lets a curriculum that probes play tasks with the current weights; the tokens count."""
    source: Any = session.source
    if not hasattr(source, "prepare"):
        return {}
    assert session.grower is not None
    play = GrowerPlay(session.grower, session.config.seed, getattr(source, "temperature", 0.7))
    metrics: dict[str, float] = source.prepare(step, play)
    session.generated_tokens += play.generated_tokens
    return metrics


def rescue_failed(session: Session, trees: list[Tree], step: int) -> list[Tree]:
    """The trees to learn from; those that a rescue returns are scored already."""
    if session.rescue is None:
        return trees
    assert not isinstance(session.source, StoredTrees)
    regrow = partial(_regrow, session, step)
    return session.rescue(trees, RescueContext(step, regrow, session.source.sample))


def _regrow(session: Session, step: int, tasks: Sequence[Task], name: str) -> list[Tree]:
    return grow_scored(session, tasks, step, name)


def group_metrics(session: Session, trees: Sequence[Tree]) -> dict[str, float]:
    """Reward by difficulty (or by kind of task), and what the self-exemplifying form is used for."""
    label_of = getattr(session.source, "difficulty_of", lambda task: task.kind)
    options = session.config.environment.options
    metrics = reward_by_label(trees, label_of)
    if options.get("exemplify"):
        metrics |= self_exemplifying_metrics(trees, options.get("format", "hermes"))
    return metrics
