"""The critic: folds, cross-fitting, a value function that it must find, and its state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from updates import tiny

from firesteel.config import CriticConfig
from firesteel.errors import ConfigError
from firesteel.learners.critic import (
    CrossFittedCritic,
    ValueModel,
    assign_folds,
    explained_variance,
    state_columns,
)
from firesteel.packing import Row


def row(ids: list[int], trained: list[int]) -> Row:
    floats = [np.zeros(len(ids), np.float32) for _ in range(5)]
    made = Row(np.array(ids), np.zeros(len(ids), bool), *floats)
    made.loss_mask[trained] = True
    return made


def critic(count: int, *, noise: bool = False, folds: int = 2, **settings: Any) -> CrossFittedCritic:
    """Steps whose worth is 1 where token 11 came before, and -1 where 12 did; or by the question's number alone."""
    rng = np.random.default_rng(0)
    rows, rewards, groups = [], [], []
    for number in range(count):
        mark = int(rng.integers(2))
        ids = [*rng.integers(20, 300, size=int(rng.integers(2, 6))).tolist(), 11 + mark, 5, 6, 7]
        rows.append(row(ids, [len(ids) - 2, len(ids) - 1]))
        rewards.append([float(rng.choice([-1.0, 1.0])) if noise else 1.0 - 2.0 * mark])
        groups.append(f"q{number}")
    config = CriticConfig(**{"folds": folds, "lr": 1e-2, "hidden": 16, "batch_rows": 8} | settings)
    return CrossFittedCritic(tiny(), config, rows, rewards, groups, seed=1)


# By hand


def test_values_are_read_before_each_run_of_trained_tokens() -> None:
    assert state_columns(row([1, 2, 3, 4, 5, 6, 7], [2, 3, 6])).tolist() == [1, 5]


def test_explained_variance_by_hand() -> None:
    rewards = np.array([0.0, 2.0])
    assert explained_variance(rewards, np.array([7.0, 7.0])) == 0.0
    assert explained_variance(rewards, rewards) == 1.0
    assert explained_variance(rewards, np.array([0.0, 1.0])) == 0.75  # what is left is (0, 1): 0.25 of 1
    assert explained_variance(rewards, np.array([2.0, 0.0])) == -3.0
    assert math.isnan(explained_variance(np.array([1.0, 1.0]), rewards))


def test_questions_are_never_split_over_folds() -> None:
    groups = [f"q{number // 3}" for number in range(30)]
    folds = assign_folds(groups, 5, seed=0)
    assert {len({fold for fold, name in zip(folds, groups, strict=True) if name == group}) for group in groups} == {1}
    assert [folds.count(fold) for fold in range(5)] == [6] * 5
    assert folds != assign_folds(groups, 5, seed=1)
    with pytest.raises(ConfigError, match="critic.folds is 5, and the trajectories are of 2 questions"):
        assign_folds(["a", "b", "a"], 5, seed=0)
    with pytest.raises(ConfigError, match="at least 2 folds"):
        assign_folds(["a", "b"], 1, seed=0)


def test_values_start_at_zero_and_advantages_are_what_is_left() -> None:
    made = critic(6)
    assert all(not values.any() for values in made.values)
    assert np.concatenate(made.advantages()).tolist() == np.concatenate(made.rewards).tolist()
    made.values = [np.full(1, 0.25, np.float32) for _ in made.values]
    assert np.concatenate(made.advantages()).tolist() == [value - 0.25 for value in np.concatenate(made.rewards)]


# Learning


def test_the_critic_finds_a_known_value_function_on_questions_that_it_never_saw() -> None:
    made = critic(80, epochs=8)
    made.fit_epoch()
    assert made.metrics["critic/explained_variance"] > 0.9
    assert made.metrics["critic/advantage_std"] < 0.35


def test_a_critic_that_could_only_remember_explains_nothing_and_advantages_stay() -> None:
    """The reward is noise of its own for each question: cross-fitted values cannot remove it."""
    made = critic(40, noise=True, epochs=8)
    made.fit_epoch()
    assert made.metrics["critic/loss"] < 0.5  # remembered where it was seen
    assert made.metrics["critic/explained_variance"] < 0.2
    assert made.metrics["critic/advantage_std"] > 0.9


def test_a_fold_learns_nothing_from_its_own_rows() -> None:
    """Other rewards in fold 0 leave the values of fold 0, and only those, as they were."""
    one, other = critic(12), critic(12)
    for index, fold in enumerate(other.fold_of_row):
        if fold == 0:
            other.rewards[index] = other.rewards[index] + 3.0
    one.fit_epoch()
    other.fit_epoch()
    for index, fold in enumerate(one.fold_of_row):
        assert np.array_equal(one.values[index], other.values[index]) == (fold == 0)


def test_the_same_seed_gives_the_same_values_and_a_stored_state_goes_on_alike() -> None:
    one, other = critic(12), critic(12)
    one.fit_epoch()
    tensors, state = one.state()
    other.restore({name: value.clone() for name, value in tensors.items()}, state)
    assert all(np.array_equal(a, b) for a, b in zip(one.values, other.values, strict=True))
    one.fit_epoch()
    other.fit_epoch()
    assert one.epochs_done == other.epochs_done == 2
    assert all(np.array_equal(a, b) for a, b in zip(one.values, other.values, strict=True))
    assert one.metrics == other.metrics


def test_only_adapters_and_head_are_trained() -> None:
    network = ValueModel(tiny(), CriticConfig(hidden=8), seed=0)
    names = [name for name, value in network.named_parameters() if value.requires_grad]
    assert names and all("lora_" in name or name.startswith("head.") for name in names)
    assert all(value.shape[0] == 8 for name, value in network.named_parameters() if "lora_A" in name)
    assert not torch.any(network([row([1, 2, 3], [2])]))
