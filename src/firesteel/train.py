"""The one loop: sample tasks, grow trees, score them, estimate advantages, update, load the new weights.

Supervised learning runs through the same loop; it reads stored episodes in place of growing trees.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from firesteel.advantages import estimate_advantages, permute_within_groups
from firesteel.branching import BranchCriterion, make_criterion
from firesteel.checkpoint import load_checkpoint
from firesteel.config import Config
from firesteel.curriculum import Curriculum, make_curriculum
from firesteel.demonstrations import StoredTrees
from firesteel.environments.tool_calls.template import with_call_format
from firesteel.errors import ConfigError
from firesteel.evaluate import Evaluation, evaluate_policy
from firesteel.export import save_model
from firesteel.fresh_trees import group_metrics, grow_scored, probe_if_due, rescue_failed
from firesteel.hard_sampling import Ledger
from firesteel.learners import OBJECTIVES
from firesteel.learners.learner import Learner
from firesteel.learners.ppo import PpoLearner
from firesteel.learners.reference import Reference
from firesteel.offline import JudgedTrees, data_texts, open_stored_trees
from firesteel.packing import pack
from firesteel.plugins import load
from firesteel.policy import Policy, load_policy, load_tasks
from firesteel.prompts import PROMPTS
from firesteel.report import rollout_metrics
from firesteel.rescue import Rescue, make_rescue
from firesteel.rewards import REWARDS, pad_groups
from firesteel.rollout import Grower, RolloutStats, derive_seed
from firesteel.run import Run
from firesteel.stability import CollapseDetector
from firesteel.training_state import capture_rng, join_state, restore_rng, split_state
from firesteel.tree import Tree

MAY_DIFFER = ("steps", "runs_dir", "name", "keep_checkpoints", "token_budget", "environment.step_timeout_s",
              "environment.pool")  # fmt: skip
"""Settings that a resumed run may change."""

Listener = Callable[[str, dict[str, Any]], None]


def silent(event: str, facts: dict[str, Any]) -> None:
    """The listener that hears nothing."""
    del event, facts


@dataclass(slots=True)
class Session:
    """Everything that a run holds in memory. What must survive a crash goes through `state` and `restore`."""

    config: Config
    policy: Policy
    learner: Learner
    grower: Grower | None
    criterion: BranchCriterion
    source: Curriculum | StoredTrees
    rescue: Rescue | None
    detector: CollapseDetector
    listen: Listener = silent
    generated_tokens: int = 0
    leaves: int = 0
    before: dict[str, Any] | None = None
    validation_before: dict[str, Any] | None = None
    best: dict[str, Any] = field(default_factory=lambda: {"step": 0, "success": None})
    collapses: list[dict[str, Any]] = field(default_factory=list)
    roll_backs: int = 0
    is_stopped: bool = False
    looks: int = 0
    """Evaluations that `evaluation.every_tokens` asked for."""

    def is_spent(self, step: int) -> bool:
        """Whether the token budget is used up for `step`: nothing is left, or less than its probe is known to take."""
        if self.config.token_budget is None:
            return False
        left = self.config.token_budget - self.generated_tokens
        return left <= 0 or left < self.probe_tokens(step)

    def probe_tokens(self, step: int) -> int:
        """What the probe that `step` begins with took the last time; 0 where it begins with none, or with the first."""
        probe_tokens = getattr(self.source, "probe_tokens", None)
        return 0 if probe_tokens is None else int(probe_tokens(step))

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(named tensor files, JSON): all that the next step depends on."""
        moments, scalars = split_state(self.learner.optimizer.state_dict())
        trainable = {name: value for name, value in self.policy.model.named_parameters() if value.requires_grad}
        state = {
            "optimizer": scalars, "updates": self.learner.updates, "source": self.source.state_dict(),
            "criterion": self.criterion.state_dict(), "generated_tokens": self.generated_tokens,
            "leaves": self.leaves, "before": self.before, "validation_before": self.validation_before,
            "best": self.best, "rng": capture_rng(), "detector": self.detector.state_dict(),
            "collapses": self.collapses, "roll_backs": self.roll_backs, "is_stopped": self.is_stopped,
            "looks": self.looks,
        }  # fmt: skip
        tensors = {"model": {name: value.detach() for name, value in trainable.items()}, "optimizer": moments}
        if isinstance(self.source, JudgedTrees) and self.source.critic is not None:
            tensors["critic"] = self.source.tensors()
        return tensors, state

    def restore(self, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.learner.updates = state["updates"]
        self.load_model(tensors["model"])
        self.learner.optimizer.load_state_dict(join_state(tensors["optimizer"], state["optimizer"]))
        self.source.load_state_dict(state["source"])
        if isinstance(self.source, JudgedTrees):
            self.source.load_tensors(tensors.get("critic", {}), state["source"])
        self.criterion.load_state_dict(state["criterion"])
        self.generated_tokens, self.leaves = state["generated_tokens"], state["leaves"]
        self.before, self.validation_before = state["before"], state.get("validation_before")
        self.best = state["best"]
        self.detector.load_state_dict(state["detector"])
        self.collapses, self.roll_backs = state["collapses"], state["roll_backs"]
        self.is_stopped, self.looks = state["is_stopped"], state.get("looks", 0)
        restore_rng(state["rng"])

    def load_model(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts saved trainable parameters back into the model and drops cached keys and values."""
        parameters = dict(self.policy.model.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                parameters[name].copy_(value)
        self.policy.generator.load_weights(self.learner.weights(), version=self.learner.updates)


def train(config: Config, *, resume: bool = False, listen: Listener = silent) -> dict[str, Any]:
    """Runs one experiment in `runs_dir/name` and returns what its `summary.json` holds.

    Args:
        config: the settings.
        resume: go on from the newest whole checkpoint of an existing run; the result has the same bits as
            that of an uninterrupted run (`deterministic`, same machine and thread count).
        listen: is told what happens, as (event, facts); the command line draws its progress bars from it.
    """
    config = with_call_format(config)
    set_up_torch(config)
    # Opened first, so that settings that cannot work leave no directory behind.
    session = open_session(config, listen)
    # Absolute: an environment may change the current directory.
    with Run.create(Path(config.runs_dir).absolute() / config.name, config.model_dump(mode="json"), resume=resume,
                    may_differ=MAY_DIFFER) as run:  # fmt: skip
        checkpoint = run.load_checkpoint()
        if checkpoint is None:
            start(session, run)
        else:
            session.restore(checkpoint.tensors, checkpoint.state)
        keep_ledger(session, run)
        stats = RolloutStats() if session.grower is None else session.grower.stats
        for step in range(run.start_step, config.steps):
            if session.is_spent(step) or session.is_stopped:
                break
            timings: dict[str, float] = {}
            found: dict[str, float] = {}
            progress = session.generated_tokens / config.token_budget if config.token_budget is not None else 0.0
            factor = rate_factor(session, step)
            with timed(timings, "seconds/step"):
                forks_s = stats.fork_s
                with timed(timings, "seconds/rollout"):
                    trees = next_trees(session, step, found)
                timings["seconds/forks"] = stats.fork_s - forks_s
                with timed(timings, "seconds/update"):
                    batch = pack(trees, weighting=config.advantage.weighting, aggregation=config.loss.aggregation,
                                 prompt_weight=config.learner.prompt_weight)  # fmt: skip
                    metrics = session.learner.update(batch, rate_factor=factor, progress=progress)
                session.policy.generator.load_weights(session.learner.weights(), version=session.learner.updates)
                metrics |= rollout_metrics(trees, session.generated_tokens) | found
                is_last = step + 1 == config.steps or session.is_spent(step + 1)
                with timed(timings, "seconds/evaluation"):
                    evaluated = evaluate_if_due(session, step + 1, metrics, is_last=is_last)
                watch(session, run, step + 1, metrics)
            if config.save_trees and session.grower is not None:
                run.add_trees(step, trees)
            run.log(step, metrics, timings)
            listen("step", {"step": step + 1, "steps": config.steps, "metrics": metrics, "timings": timings})
            if evaluated or is_last or (config.save_every and (step + 1) % config.save_every == 0):
                save(session, run, step + 1)
        return finish(session, run)


def next_trees(session: Session, step: int, found: dict[str, float]) -> list[Tree]:
    """The scored trees of one step: stored ones, or fresh ones with rewards and advantages.

    What the curriculum and the rescue measured is added to `found`.
    """
    config = session.config
    if session.grower is None:
        assert isinstance(session.source, StoredTrees)
        trees = session.source.sample(config.tasks_per_step)
        found |= session.source.metrics if isinstance(session.source, JudgedTrees) else {}
        return trees
    assert not isinstance(session.source, StoredTrees)
    found |= probe_if_due(session, step)
    trees = grow_scored(session, session.source.sample(config.tasks_per_step), step)
    found |= group_metrics(session, trees)
    trees = rescue_failed(session, trees, step)
    found |= session.rescue.metrics if session.rescue is not None else {}
    if config.rollout.pad_groups:
        pad_groups(trees, config.rollout.num_leaves, seed=derive_seed(config.seed, step, "pad"))
    if config.advantage.permute:
        permute_within_groups(trees, seed=derive_seed(config.seed, step, "permute"))
    estimate_advantages(trees, config.advantage)
    session.source.observe(trees)
    return trees


def rate_factor(session: Session, step: int) -> float:
    """What the rate of a step about to begin is multiplied by: decay by steps or tokens, by rounds, by roll-backs."""
    config = session.config
    by_tokens = config.learner.lr_decay_tokens
    periods = session.generated_tokens // by_tokens if by_tokens else step // config.learner.lr_decay_every
    factor = config.learner.lr_decay**periods * config.stability.roll_back_lr**session.roll_backs
    lr_factor = getattr(session.source, "lr_factor", None)
    return factor if lr_factor is None else factor * float(lr_factor(step))


def open_session(config: Config, listen: Listener = silent) -> Session:
    """Loads the model and builds every part that the configuration names."""
    is_stored = config.learner.kind in ("sft", "ppo")
    if is_stored and not config.data:
        raise ConfigError(
            f"learner.kind is '{config.learner.kind}', which learns from stored episodes: set data=[FILE]"
        )
    load(config.reward.name, REWARDS, kind="reward")
    write = load(config.context.prompts, PROMPTS, kind="prompts").write
    policy = load_policy(config, texts=data_texts(config.data, write) if config.data and config.model.tiny else ())
    criterion = make_criterion(config.rollout.criterion, config.rollout.width, config.rollout.criterion_options)
    learner = open_learner(config, policy)
    source: Curriculum | StoredTrees
    rescue = None
    if is_stored:
        source = open_stored_trees(config, policy, learner)
    else:
        tasks = load_tasks(config, config.environment.split, config.environment.num_tasks)
        curriculum = config.curriculum
        source = make_curriculum(curriculum.name, tasks, seed=config.seed, options=curriculum.options)
        rescue = make_rescue(
            config.rescue.name, tasks, seed=config.seed, options=config.rescue.options,
            call_format=config.environment.options.get("format"),
        )  # fmt: skip
    grower = None if is_stored else policy.grower(config, criterion)
    detector = CollapseDetector(config.stability.collapse_below, config.stability.patience)
    return Session(config, policy, learner, grower, criterion, source, rescue, detector, listen)


def open_learner(config: Config, policy: Policy) -> Learner:
    """The learner of `learner.kind`, with the policy as it is now for a reference where it needs one."""
    common: dict[str, Any] = {"total_steps": config.steps, "seed": config.seed}
    if config.learner.kind == "ppo":
        return PpoLearner(policy.model, config.learner, config.loss, config.ppo, **common)
    objective = load(config.learner.kind, OBJECTIVES, kind="learner")(config.loss)
    if config.stability.log_kl and config.learner.kind == "policy_gradient":
        objective.needs_reference = True
    reference = Reference(policy.model) if objective.needs_reference else None
    return Learner(policy.model, objective, config.learner, config.loss, reference=reference, **common)


def start(session: Session, run: Run) -> None:
    """What happens before the first update: the test set is played, validation sets its first mark."""
    settings = session.config.evaluation
    if settings.test_split is not None:
        session.before = play(session, settings.test_split, settings.test_tasks).summary()
        session.listen("before", session.before)
    if settings.looks:
        result = play(session, settings.split, settings.num_tasks).summary()
        session.validation_before = result
        session.best = {"step": 0, "success": result["success"], "score": result["score"]}
        session.detector.observe(0, result["success"])
        session.listen("evaluation", {"step": 0, **result})
    if isinstance(session.source, JudgedTrees) and session.config.save_trees:
        session.source.save(run.directory / "judged_trees.jsonl")
    save(session, run, 0)


def evaluate_if_due(session: Session, updates: int, metrics: dict[str, Any], *, is_last: bool) -> bool:
    """Plays the validation tasks where `evaluation` asks for it and after the last update; keeps the best in mind."""
    settings = session.config.evaluation
    by_steps = settings.every > 0 and updates % settings.every == 0
    by_tokens = settings.every_tokens > 0 and session.generated_tokens // settings.every_tokens > session.looks
    session.looks += by_tokens
    if not (by_steps or by_tokens or (is_last and settings.looks)):
        return False
    result = play(session, settings.split, settings.num_tasks).summary()
    names = ("success", "low", "high", "score", "steps", "invalid", "repetition", "explore_ratio")
    metrics |= {f"eval/{name}": result[name] for name in names}
    metrics |= {f"eval/{name}": value for name, value in result.get("figures", {}).items() if value is not None}
    mark = (result["success"], result["score"])
    best = (session.best["success"], session.best["score"])
    if mark[0] is not None and (best[0] is None or mark > best):
        session.best = {"step": updates, "success": mark[0], "score": mark[1]}
    session.listen("evaluation", {"step": updates, **result})
    return True


def watch(session: Session, run: Run, updates: int, metrics: dict[str, Any]) -> None:
    """Looks for a collapse after an evaluation, says when and why, and does what `stability.on_collapse` says."""
    session.detector.note(metrics)
    if "eval/success" not in metrics:
        return
    collapse = session.detector.observe(updates, metrics["eval/success"])
    metrics["stability/collapses"] = len(session.collapses) + (collapse is not None)
    if collapse is None:
        return
    session.collapses.append(collapse.to_dict())
    session.listen("note", {"text": str(collapse)})
    rule = session.config.stability.on_collapse
    session.is_stopped = rule == "stop"
    if rule == "roll_back":
        best = load_checkpoint(best_directory(session, run), names={"model", "optimizer"})
        session.load_model(best.tensors["model"])
        moments = join_state(best.tensors["optimizer"], best.state["optimizer"])
        session.learner.optimizer.load_state_dict(moments)
        session.roll_backs += 1
        session.detector.start_over()


def best_directory(session: Session, run: Run) -> Path:
    """The checkpoint of the best step on validation."""
    return run.directory / "checkpoints" / f"step-{session.best['step']:06d}"


def keep_ledger(session: Session, run: Run) -> None:
    """Gives a curriculum that keeps a ledger its file, without what a resumed run writes again."""
    source: Any = session.source
    if hasattr(source, "ledger"):
        source.ledger = Ledger(run.directory / "hard_samples.jsonl")
        source.ledger.truncate(run.start_step)


def play(session: Session, split: str, count: int | None) -> Evaluation:
    """An evaluation of the current weights."""
    tasks = load_tasks(session.config, split, count)
    return evaluate_policy(
        session.policy, session.config, tasks, split=split,
        on_progress=lambda done, of: session.listen("playing", {"split": split, "done": done, "of": of}),
    )  # fmt: skip


def save(session: Session, run: Run, step: int) -> None:
    """A checkpoint in which `step` is the next to do."""
    tensors, state = session.state()
    best_step = session.best["step"] if session.config.evaluation.looks else None
    run.save_checkpoint(step, tensors=tensors, state=state, keep=session.config.keep_checkpoints, best_step=best_step)


def finish(session: Session, run: Run) -> dict[str, Any]:
    """Goes back to the best step on validation, plays the test set, saves the model and writes the summary."""
    config, settings = session.config, session.config.evaluation
    if settings.looks:
        session.load_model(load_checkpoint(best_directory(session, run), names={"model"}).tensors["model"])
    summary: dict[str, Any] = {
        "name": config.name, "seed": config.seed, "steps": session.learner.updates, "best": session.best,
        "generated_tokens": session.generated_tokens, "leaves": session.leaves,
        "tokens_per_leaf": session.generated_tokens / session.leaves if session.leaves else None,
        "collapses": session.collapses, "stopped": session.is_stopped,
        "next_probe_tokens": session.probe_tokens(session.learner.updates),
    }  # fmt: skip
    if settings.test_split is not None:
        after = play(session, settings.test_split, settings.test_tasks)
        summary |= {"before": session.before, "after": after.summary()}
    if session.validation_before is not None:
        summary["validation_before"] = session.validation_before
    summary["seconds"] = round(total_seconds(run.directory / "timings.jsonl"), 1)
    summary["model"] = str(save_model(session.policy, run.directory / "model", config))
    run.write_summary(summary)
    session.listen("done", {"summary": summary, "directory": str(run.directory)})
    return summary


def set_up_torch(config: Config) -> None:
    """Threads, determinism, and the seeds of the global generators, which environments and rewards may draw from."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds spent inside to `timings[name]`."""
    begin = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - begin


def total_seconds(path: Path) -> float:
    """The sum of all steps' seconds, over every session of the run."""
    lines: Sequence[str] = path.read_text().splitlines() if path.exists() else ()
    return sum(json.loads(line).get("seconds/step", 0.0) for line in lines)
