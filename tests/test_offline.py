"""Stored trajectories through the one loop: SFT, PPO, what is refused, and resumption to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judged_rows import trajectory, write_rows
from small_runs import differing_files
from toys import builder

from firesteel.config import Config
from firesteel.errors import CheckpointError, ConfigError, ContextOverflow
from firesteel.offline import StoredTrajectories, has_trajectories, import_trees
from firesteel.train import open_session, train
from firesteel.tree import Tree


def stored(folder: Path) -> str:
    """Eight questions of two steps: `dates` pays (a gap of 2), `cot` is unsound in every other trajectory."""
    steps = [[("dates", 7.0, 9.0, True), ("cot", 9.0, 9.0, number % 2 == 0)] for number in range(8)]
    found = [trajectory(number, each, answer="BC"[number % 4 == 3]) for number, each in enumerate(steps)]
    return write_rows(folder / "rows.jsonl", found)


def settings(folder: Path, **changes: Any) -> Config:
    layer = {
        "runs_dir": str(folder), "data": [str(folder / "rows.jsonl")], "save_every": 1,
        "context": {"prompts": "compact"}, "advantage": {"weighting": "node"},
        "environment": {"name": "tool_questions", "options": {"tools": ["dates"]}},
    }  # fmt: skip
    return Config.build(layer, changes)


def supervised(folder: Path) -> Config:
    tiny = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "vocab_size": 300, "max_context": 512}
    return settings(
        folder, name="sft", steps=3, tasks_per_step=4, model={"tiny": tiny}, learner={"kind": "sft", "lr": 1e-2}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and a model that was trained on them."""
    place = tmp_path_factory.mktemp("offline")
    stored(place)
    train(supervised(place))
    return place


def ppo(folder: Path, **changes: Any) -> Config:
    base = {
        "name": "ppo", "steps": 3, "tasks_per_step": 4, "model": {"path": str(folder / "sft" / "model")},
        "learner": {"kind": "ppo", "lr": 1e-2, "minibatches": 2}, "critic": {"folds": 2, "hidden": 8},
    }  # fmt: skip
    return settings(folder, **base).updated(changes)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# What is read


def test_each_stage_has_its_own_filter(folder: Path) -> None:
    """Of 16 steps 4 are unsound; answers are wrong in 2 of 8 trajectories, whose 2 unsound steps are among the 4."""
    trees, counts = import_trees(supervised(folder), builder(), max_context=10_000)
    # 6 right trajectories: 12 steps less 2 unsound, and 6 answers
    assert len(trees) == 6 and counts["offline/steps"] == 16 and counts["offline/left_out"] == 2
    trees, counts = import_trees(ppo(folder), builder(), max_context=10_000)
    assert len(trees) == 8 and counts["offline/steps"] == 16
    rewards = [tree.leaves[0].step_rewards for tree in trees]
    assert rewards[:2] == [[1.0, 0.0], [1.0, -0.5]]  # rho = .5: .5 * 2, and -.5 where unsound
    with_outcome = import_trees(ppo(folder, ppo={"outcome_weight": 0.5}), builder(), max_context=10_000)[0]
    assert [tree.leaves[0].step_rewards for tree in with_outcome][2:4] == [[1.5, 0.5, 0.5], [1.0, -0.5, 0.0]]


def test_what_teaches_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no variance over the 12 steps.*ppo.filter is 'process_ok'"):
        import_trees(ppo(folder, ppo={"filter": "process_ok", "rho": 0}), builder(), max_context=10_000)
    with pytest.raises(ContextOverflow, match="all 8 trajectories are longer than the model's context of 20 tokens"):
        import_trees(ppo(folder), builder(), max_context=20)
    (folder / "episodes.jsonl").write_text('{"task_id": "x"}\n')
    both = [str(folder / "rows.jsonl"), str(folder / "episodes.jsonl")]
    with pytest.raises(ConfigError, match="data mixes"):
        has_trajectories(both)
    with pytest.raises(ConfigError, match="'ppo' learns from judged trajectories"):
        open_session(ppo(folder, data=both[1:]))
    with pytest.raises(ConfigError, match="critic.folds is 9, and the trajectories are of 8 questions"):
        open_session(ppo(folder, critic={"folds": 9}))
    with pytest.raises(ConfigError, match="learner.kind is 'ppo', which learns from stored episodes: set data"):
        open_session(ppo(folder, data=[]))


def test_an_epoch_holds_every_trajectory_once_and_no_sample_crosses_it() -> None:
    source = StoredTrajectories([Tree(task=None) for _ in range(5)], seed=0)  # type: ignore[arg-type]
    sizes, seen = [], []
    for _ in range(6):
        epoch = source.epoch
        found = source.sample(2)
        sizes.append((epoch, len(found)))
        seen += [id(tree) for tree in found]
    assert sizes == [(0, 2), (0, 2), (0, 1), (1, 2), (1, 2), (1, 1)]
    assert set(seen[:5]) == set(seen[5:]) == {id(tree) for tree in source.trees}
    assert seen[:5] != seen[5:]


# The loop


def test_ppo_runs_through_the_loop_and_raises_what_paid(folder: Path) -> None:
    train(ppo(folder, steps=8, learner={"lr": 3e-3}))
    run = folder / "ppo"
    metrics = lines(run / "metrics.jsonl")
    first = metrics[0]
    assert first["offline/steps"] == 16 and first["critic/reward_mean"] == pytest.approx((8 - 2) / 16)
    assert first["losses/ratio_max"] > 1 and metrics[-1]["losses/kl"] > 0
    assert {"critic/explained_variance", "critic/advantage_std", "losses/squared_kl"} <= first.keys()
    record = lines(run / "judged_trees.jsonl")
    assert len(record) == 8 and len({each.pop("snapshot") for each in record}) == 1
    old = [node for each in record for node in Tree.from_dict(each).nodes if node.role == "response"]
    assert all(node.sampling_logprobs and len(node.sampling_logprobs) == len(node.token_ids) for node in old)


def test_without_a_critic_the_advantage_is_the_reward(folder: Path) -> None:
    session = open_session(ppo(folder, name="plain", critic={"folds": 0}))
    tree = session.source.sample(1)[0]  # type: ignore[union-attr]
    assert tree.leaves[0].advantages == tree.leaves[0].step_rewards
    assert session.state()[0].keys() == {"model", "optimizer"}


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_bytes(folder: Path, tmp_path: Path, stop: int) -> None:
    """The critic is fitted before updates 1 and 3; its state and the frozen values must come back."""
    whole = ppo(
        folder, runs_dir=str(tmp_path / "whole"), steps=4, ppo={"on_target": "adapt"}, learner={"warmup_steps": 9}
    )
    cut = whole.updated({"runs_dir": str(tmp_path / "cut")})
    train(whole)
    train(cut.updated({"steps": stop}))
    (tmp_path / "cut" / "ppo" / "summary.json").unlink()
    train(cut, resume=True)
    assert differing_files(tmp_path / "whole" / "ppo", tmp_path / "cut" / "ppo") == []


def test_another_starting_model_is_refused_on_resume(folder: Path) -> None:
    source = open_session(ppo(folder)).source
    state = source.state_dict()
    source.load_state_dict(dict(state))
    with pytest.raises(CheckpointError, match="the run began with old_logprobs of policy 000000000000"):
        source.load_state_dict(state | {"snapshot": "0" * 32})
