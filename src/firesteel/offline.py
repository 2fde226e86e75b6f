"""Learning from stored, judged trajectories: where trees come from when none are grown.

`StoredTrajectories` serves supervised learning. `JudgedTrees` serves PPO: it holds what the old policy says of every
token (`old_logprobs`, with the hash of that policy), and keeps the advantages, which a cross-fitted critic renews at
the start of each epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firesteel.config import Config
from firesteel.config_ppo import RowFilter
from firesteel.context import ContextBuilder
from firesteel.demonstrations import StoredTrees, Write, read_texts, shuffled
from firesteel.errors import CheckpointError, ConfigError, ContextOverflow
from firesteel.files import write_atomic
from firesteel.judged import (
    Trajectory,
    is_kept,
    is_trajectory_file,
    load_trajectories,
    require_variance,
    step_reward,
    trajectory_texts,
    trajectory_tree,
)
from firesteel.learners.critic import CrossFittedCritic
from firesteel.learners.learner import Learner
from firesteel.learners.ppo import PpoLearner
from firesteel.packing import Row, pack
from firesteel.policy import Policy, load_base_model
from firesteel.tree import Tree


def has_trajectories(paths: Sequence[str]) -> bool:
    """Whether the data are judged trajectories; `ConfigError` where some files are and some are not."""
    kinds = {is_trajectory_file(path) for path in paths}
    if len(kinds) > 1:
        raise ConfigError("data mixes files of episodes and of judged trajectories; train on one kind at a time")
    return kinds == {True}


def data_texts(paths: Sequence[str], write: Write) -> list[str]:
    """All text of files of episodes or of judged trajectories: what a small model's tokenizer is trained on."""
    return list(trajectory_texts(paths, write)) if has_trajectories(paths) else read_texts(paths, write)


def import_trees(config: Config, context: ContextBuilder, *, max_context: int) -> tuple[list[Tree], dict[str, float]]:
    """The trees of all trajectories with a step to learn from, and how many were left out.

    Raises:
        ConfigError: no step is left, or for PPO the reward has no variance.
        ContextOverflow: every trajectory is longer than the model's context.
    """
    ppo = config.ppo
    is_ppo = config.learner.kind == "ppo"
    row_filter: RowFilter = ppo.filter if is_ppo else ppo.sft_filter
    trees: list[Tree] = []
    rewards: list[float] = []
    kept_rows: list[Any] = []
    too_long = left_out = 0
    for rows in load_trajectories(config.data):
        kept = [is_kept(row, rows, row_filter) for row in rows]
        values = [step_reward(row, ppo) for row in rows]
        worth = _answer_reward(rows, config, row_filter)
        tree = trajectory_tree(rows, context, kept, values, answer_reward=worth, action=ppo.action, answer=ppo.answer)
        if tree.leaves[0].masked:
            left_out += 1
        elif max(len(tree.stream(node.index)) for node in tree.nodes) > max_context:
            too_long += 1
        else:
            trees.append(tree)
            rewards += tree.leaves[0].step_rewards or []
            kept_rows += [row for row, is_in in zip(rows, kept, strict=True) if is_in]
    if too_long and not trees:
        raise ContextOverflow(
            f"all {too_long} trajectories are longer than the model's context of {max_context} tokens; take "
            "trajectories of fewer steps, context.mode=window, or a model with a longer context"
        )
    if is_ppo:
        require_variance(rewards, kept_rows, ppo)
    elif not trees:
        raise ConfigError(f"ppo.sft_filter '{row_filter}' leaves no step of the trajectories; take a weaker filter")
    counts = {"trajectories": len(trees), "steps": len(rewards), "left_out": left_out, "too_long": too_long}
    return trees, {f"offline/{name}": float(value) for name, value in counts.items()}


def _answer_reward(rows: Trajectory, config: Config, row_filter: RowFilter) -> float | None:
    """What the answer is worth; None where it is not trained: no judge has scored it."""
    is_correct = bool(rows[0]["is_correct"])
    if config.learner.kind == "ppo":
        return config.ppo.outcome_weight * float(is_correct) if config.ppo.outcome_weight > 0 else None
    needs_correct = row_filter in ("correct", "process_ok_and_correct")
    return 1.0 if is_correct or not needs_correct else None


class StoredTrajectories(StoredTrees):
    """Trees of judged trajectories in a new seeded order each epoch."""

    def __init__(self, trees: Sequence[Tree], *, seed: int) -> None:
        self.trees = list(trees)
        self.seed = seed
        self.drawn = 0
        self.metrics: dict[str, float] = {}

    def sample(self, count: int) -> list[Tree]:
        """The next `count` trees; fewer at the end of an epoch, which no sample goes beyond."""
        epoch, place = divmod(self.drawn, len(self.trees))
        order = shuffled(len(self.trees), f"{self.seed}/{epoch}")
        chosen = [self.trees[index] for index in order[place : place + count]]
        self.drawn += len(chosen)
        return chosen

    @property
    def epoch(self) -> int:
        """The epoch that the next sample belongs to, from 0."""
        return self.drawn // len(self.trees)


class JudgedTrees(StoredTrajectories):
    """Trees of PPO: with `old_logprobs` in their nodes, and advantages R - V_old that last for one epoch."""

    def __init__(
        self, trees: Sequence[Tree], learner: PpoLearner, critic: CrossFittedCritic | None, *, seed: int
    ) -> None:
        """`learner` has the weights that training starts from; `critic` was made for the rows of the trees, in order.

        None for `critic`: A = R.
        """
        super().__init__(trees, seed=seed)
        self.snapshot = snapshot_hash(learner.model)
        self.critic = critic
        self.learner = learner
        if critic is None:
            for tree in self.trees:
                tree.leaves[0].advantages = list(tree.leaves[0].step_rewards or [])

    def sample(self, count: int) -> list[Tree]:
        if self.critic is not None and self.critic.epochs_done == self.epoch:
            self.critic.fit_epoch()
            self._set_advantages()
        if self.critic is not None:
            self.metrics |= self.critic.metrics
        return super().sample(count)

    def _set_advantages(self) -> None:
        assert self.critic is not None
        flat = np.concatenate(self.critic.advantages())
        place = 0
        for tree in self.trees:
            count = len(tree.leaves[0].step_rewards or [])
            tree.leaves[0].advantages = [float(value) for value in flat[place : place + count]]
            place += count

    def save(self, path: Path) -> None:
        """Writes the imported trees, one JSON object a line: the token ids and `old_logprobs` that training uses."""
        lines = [json.dumps({**tree.to_dict(), "snapshot": self.snapshot}) for tree in self.trees]
        write_atomic(path, ("\n".join(lines) + "\n").encode())

    def state_dict(self) -> dict[str, Any]:
        critic = self.critic.state()[1] if self.critic is not None else None
        return {"drawn": self.drawn, "snapshot": self.snapshot, "critic": critic, "kl_coef": self.learner.kl_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the critic's part comes by `load_tensors`."""
        if state["snapshot"] != self.snapshot:
            raise CheckpointError(
                f"the run began with old_logprobs of policy {state['snapshot'][:12]}, and the model is now "
                f"{self.snapshot[:12]}; restore the model that model.path named"
            )
        self.drawn, self.learner.kl_coef = int(state["drawn"]), float(state["kl_coef"])

    def tensors(self) -> dict[str, Tensor]:
        """The critics, their optimisers and the frozen values, for a checkpoint."""
        return self.critic.state()[0] if self.critic is not None else {}

    def load_tensors(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of `tensors`; `state` as from `state_dict`."""
        if self.critic is not None:
            self.critic.restore(tensors, state["critic"])
            if self.critic.epochs_done:
                self._set_advantages()


def open_stored_trees(config: Config, policy: Policy, learner: Learner) -> StoredTrees:
    """What `data` holds: episodes or judged trajectories for `sft`, trajectories with advantages for `ppo`.

    Raises:
        ConfigError: PPO on episodes that nobody judged, or what `import_trees` refuses.
    """
    if not has_trajectories(config.data):
        if config.learner.kind == "ppo":
            raise ConfigError(
                "learner.kind 'ppo' learns from judged trajectories; write some, `firesteel trajectories`"
            )
        return StoredTrees(config.data, policy.context, seed=config.seed)
    trees, counts = import_trees(config, policy.context, max_context=policy.generator.max_context)
    source: StoredTrajectories
    if isinstance(learner, PpoLearner):
        source = judged_trees(trees, config, learner)
    else:
        source = StoredTrajectories(trees, seed=config.seed)
    source.metrics = counts
    return source


def judged_trees(trees: Sequence[Tree], config: Config, learner: PpoLearner) -> JudgedTrees:
    """The source of PPO: trees, what the old policy says of them, and the critic."""
    set_old_logprobs(trees, learner)
    rows, rewards, groups = critic_rows(trees)
    critic = None
    if config.critic.folds:
        critic = CrossFittedCritic(
            critic_model(config), config.critic, rows, rewards, groups, seed=config.seed,
            most_tokens=config.learner.micro_batch_tokens,
        )  # fmt: skip
    return JudgedTrees(trees, learner, critic, seed=config.seed)


def set_old_logprobs(trees: Sequence[Tree], learner: PpoLearner) -> None:
    """Writes the log-probabilities under the learner's weights into the response nodes, as the record of pi_old."""
    packed = [pack([tree]).rows for tree in trees]
    found = iter(learner.logprobs([row for rows in packed for row in rows]))
    for tree, rows in zip(trees, packed, strict=True):
        values = np.concatenate([next(found) for _ in rows])
        start = 0
        for node in tree.responses(tree.leaves[0]):
            node.sampling_logprobs = [float(value) for value in values[start : start + len(node.token_ids)]]
            start += len(node.token_ids)


def critic_rows(trees: Sequence[Tree]) -> tuple[list[Row], list[list[float]], list[str]]:
    """The rows of all trees, R of the steps in each, and the question that each is about."""
    rows: list[Row] = []
    rewards: list[list[float]] = []
    groups: list[str] = []
    for tree in trees:
        values = iter(tree.leaves[0].step_rewards or [])
        for row in pack([tree]).rows:
            count = int((row.loss_mask[1:] & ~row.loss_mask[:-1]).sum())
            rows.append(row)
            rewards.append([next(values) for _ in range(count)])
            groups.append(tree.group)
    return rows, rewards, groups


def critic_model(config: Config) -> Any:
    """A model of its own for the critic: what `model.path` names, without the policy's adapter."""
    if config.model.path is None:
        raise ConfigError("learner.kind 'ppo' learns from where a cold start ended: set model.path to a trained model")
    return load_base_model(config.model)


def snapshot_hash(model: Any) -> str:
    """A hash of all weights, by name: which policy `old_logprobs` belong to."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
