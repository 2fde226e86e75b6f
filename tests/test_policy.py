"""From a configuration to a policy and its trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from toys import TEXTS, Ledger, Toy

from firesteel.config import Config
from firesteel.errors import CannotFork, ConfigError, ModelError, TaskError
from firesteel.models import write_random_hub_model
from firesteel.policy import grow_trees, load_policy, load_tasks

TINY = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "max_context": 512, "vocab_size": 320}


def config(*layers: dict[str, Any]) -> Config:
    base = {
        "model": {"tiny": TINY, "device": "cpu"},
        "environment": {"options": {"size": "small", "admissible": False}},
        "context": {"prompts": "compact"},
        "rollout": {"max_turns": 2, "max_response_tokens": 6, "num_leaves": 3, "num_roots": 2},
    }
    return Config.build(base, *layers)


def test_a_tiny_policy_grows_trees() -> None:
    settings = config({"rollout": {"criterion": "fixed_probability", "criterion_options": {"probability": 1.0}}})
    policy = load_policy(settings, texts=TEXTS * 3)
    trees = grow_trees(load_tasks(settings, "train", 2), policy, settings)
    assert [len(tree.leaves) for tree in trees] == [3, 3]
    assert (
        trees
        == grow_trees(load_tasks(settings, "train", 2), policy, settings)
        != grow_trees(load_tasks(settings, "train", 2), policy, settings, iteration=1)
    )


def test_dtype_and_adapters_are_taken_from_the_config() -> None:
    policy = load_policy(config({"model": {"dtype": "bfloat16", "lora": {"rank": 2}}}), texts=TEXTS * 3)
    named = dict(policy.model.named_parameters())
    assert {value.dtype for name, value in named.items() if "lora_" not in name} == {torch.bfloat16}
    assert {value.shape[0] for name, value in named.items() if "lora_A" in name} == {2}


@pytest.mark.parametrize(("limit", "expected"), [(None, 512 - 6), (100, 100)])
def test_a_window_leaves_room_for_the_response(limit: int | None, expected: int) -> None:
    policy = load_policy(config({"context": {"mode": "window", "max_prompt_tokens": limit}}), texts=TEXTS * 3)
    assert policy.context.max_prompt_tokens == expected


def test_the_parts_of_a_saved_model_must_fit_each_other(tmp_path: Path) -> None:
    directory = write_random_hub_model(tmp_path / "hub", texts=TEXTS, vocab_size=400, hidden=16, layers=1)
    settings = config({"model": {"tiny": None, "path": str(directory)}})
    assert load_policy(settings).generator.max_context > 0
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        load_policy(settings)


def test_a_missing_model_or_text_is_named() -> None:
    with pytest.raises(ConfigError, match="no model: set model.path"):
        load_policy(config({"model": {"tiny": None}}))
    with pytest.raises(ConfigError, match="model.tiny builds a tokenizer from training text, and there is none"):
        load_policy(config())


def test_a_split_without_tasks_is_named() -> None:
    with pytest.raises(TaskError, match="split 'train' of environment 'household' has no tasks"):
        load_tasks(config(), "train", 0)


class Unforkable(Toy):
    fork_rung: ClassVar[str] = "none"

    def __init__(self) -> None:
        super().__init__(Ledger())


def test_an_environment_that_cannot_fork_is_refused_before_anything_is_played() -> None:
    unforkable = {"environment": {"name": "test_policy:Unforkable", "options": {}}}
    settings = Config.build(config().model_dump(), unforkable, {"environment": {"options": {}}})
    settings.environment.options = {}
    policy = load_policy(settings, texts=TEXTS * 3)
    tasks = load_tasks(settings, "train", 1)
    with pytest.raises(CannotFork, match="cannot fork and rollout.criterion is 'explore_tag'"):
        grow_trees(tasks, policy, settings)
    chain = settings.updated({"rollout": {"criterion": "chain"}})
    assert len(grow_trees(tasks, policy, chain)[0].leaves) == 2
