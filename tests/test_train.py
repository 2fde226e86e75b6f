"""Whole small runs: what they write, that they repeat to the bit, and that every kind of setting can be trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import without_flushing
from safetensors.torch import load_file
from small_runs import SURROUNDINGS, differing_files, small_config

from firesteel.checkpoint import list_checkpoints, load_checkpoint
from firesteel.config import PRESETS, Config
from firesteel.environments import Environment, environment_class
from firesteel.errors import CannotFork, CheckpointError, ConfigError, StoreError, TaskError
from firesteel.evaluate import evaluate
from firesteel.files import read_jsonl
from firesteel.models import load_model_and_tokenizer, write_random_hub_model
from firesteel.store import TreeStore
from firesteel.train import open_session, train
from firesteel.tree import Episode, Tree
from firesteel.types import Observation, StepResult, Task

ROOT = Path(__file__).resolve().parent.parent
DISTINCT_ACTIONS = {"reward": {"name": f"{__name__}:distinct_actions"}}


def distinct_actions(episode: Episode) -> float:
    """A reward that even a policy that never succeeds earns unevenly."""
    return float(len({step.action for step in episode.steps}))


def length(episode: Episode) -> float:
    """A reward that even random tokens earn unevenly."""
    return float(sum(len(step.text) for step in episode.steps))


class SayCabinet(Environment):
    """One step, won by any action about a cabinet, which the cold-started model often names."""

    def __init__(self, *, size: None, admissible: None) -> None:
        self.goal = "put a mug in cabinet."

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> list[Task]:
        return [Task(f"{split}-{number}", split=split) for number in range(count or 10)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        return Observation(f"You are in room {task.id}. You see a cabinet 1 and a desk 1.")

    def step(self, action: str) -> StepResult:
        won = "cabinet" in action
        return StepResult(Observation("You did."), float(won), terminated=True, info={"success": won})

    def fork(self) -> Environment:
        return SayCabinet(size=None, admissible=None)

    fork_rung = "native"


@pytest.fixture(autouse=True)
def fast_disk() -> Iterator[None]:
    with without_flushing():
        yield


@pytest.fixture
def configure(tiny_model: Path, tmp_path: Path) -> Callable[..., Config]:
    """Settings of a small run in this test's folder, with some replaced."""
    return lambda *changes: small_config(tiny_model, tmp_path, *changes)


@pytest.fixture(scope="module")
def reference(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an undisturbed run, which nobody writes into."""
    runs_dir = tmp_path_factory.mktemp("reference")
    with without_flushing():
        train(small_config(tiny_model, runs_dir, DISTINCT_ACTIONS))
    return runs_dir / "small"


def directory(config: Config) -> Path:
    return Path(config.runs_dir) / config.name


def metrics(config: Config) -> list[dict[str, Any]]:
    return read_jsonl(directory(config) / "metrics.jsonl")


def trees(config: Config, *steps: int) -> list[Tree]:
    return list(TreeStore(directory(config) / "trees").read_trees(steps or None))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


# what a run leaves behind


def test_a_run_writes_metrics_timings_trees_checkpoints_and_a_summary(reference: Path) -> None:
    rows = read_jsonl(reference / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for name in ("losses/policy", "losses/clip_fraction", "learner/grad_norm", "rollout/success", "explore/ratio"):
        assert all(name in row for row in rows), name
    assert not [name for row in rows for name in row if "seconds" in name]
    assert {"seconds/step", "seconds/rollout", "seconds/forks", "seconds/update"} <= read_jsonl(
        reference / "timings.jsonl"
    )[0].keys()
    store = TreeStore(reference / "trees")
    assert (store.steps(), len(store)) == ([0, 1, 2], 6)
    assert [path.name for path in list_checkpoints(reference)] == ["step-000002", "step-000003"]
    summary = json.loads((reference / "summary.json").read_text())
    assert (summary["steps"], summary["model"]) == (3, str(reference / "model"))
    assert summary["generated_tokens"] == rows[-1]["rollout/total_generated_tokens"]
    assert summary["tokens_per_leaf"] == summary["generated_tokens"] / summary["leaves"]


def test_the_saved_model_is_that_of_the_last_checkpoint_and_loads(reference: Path, tiny_model: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(reference / "model")
    saved = load_checkpoint(list_checkpoints(reference)[-1], names={"model"}).tensors["model"]
    for name, value in model.named_parameters():
        assert torch.equal(value, saved[name]), name
    start, _ = load_model_and_tokenizer(tiny_model)
    moved = [name for name, value in start.named_parameters() if not torch.equal(value, saved[name])]
    assert sorted(moved) == sorted(saved)
    assert tokenizer.chat_template


def test_the_stored_trees_are_whole_and_were_learned_from(reference: Path) -> None:
    stored = list(TreeStore(reference / "trees").read_trees())
    for tree in stored:
        tree.validate()
        assert 2 <= len(tree.leaves) <= 4
        assert sum(tree.path_weight(leaf) for leaf in tree.leaves) == pytest.approx(1.0)
        assert all(leaf.status in ("finished", "truncated") for leaf in tree.leaves)
        assert all(len(leaf.advantages or ()) == len(tree.responses(leaf)) for leaf in tree.leaves)
    nodes = [node for tree in stored for node in tree.nodes if node.role == "response"]
    # a version is the number of updates that the weights had seen
    assert {node.policy_version for node in nodes} == {0, 1, 2}
    forks = [node for tree in stored for node in tree.nodes if node.width > 1 and node.turn > 0]
    assert forks and all(node.fork_rung == "native" for node in forks)
    assert all(tree.nodes[node.parent].step.explore for tree in stored for node in tree.nodes if node in forks)


# the same seed, the same bits


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(
    reference: Path, configure: Callable[..., Config]
) -> None:
    again = configure(DISTINCT_ACTIONS)
    train(again)
    assert differing_files(reference, directory(again)) == []
    other = configure(DISTINCT_ACTIONS, {"name": "other", "seed": 1, "steps": 1})
    train(other)
    assert trees(other, 0)[0].nodes[1].token_ids != trees(again, 0)[0].nodes[1].token_ids


@pytest.mark.parametrize("event", ["rollout", "step"])
@pytest.mark.parametrize("stopped_at", [0, 1, 2])
def test_a_run_that_is_stopped_and_resumed_ends_like_an_undisturbed_one(
    reference: Path, configure: Callable[..., Config], stopped_at: int, event: str
) -> None:
    config = configure(DISTINCT_ACTIONS)
    finished_steps = 0

    def stop(name: str, facts: dict[str, Any]) -> None:
        nonlocal finished_steps
        if name == event and finished_steps == stopped_at:
            raise KeyboardInterrupt
        finished_steps += name == "step"

    with pytest.raises(KeyboardInterrupt):
        train(config, listen=stop)
    train(config, resume=True)
    assert differing_files(reference, directory(config)) == []


def test_resuming_works_between_distant_checkpoints_and_with_evaluations(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    settings = {
        "steps": 4,
        "save_every": 3,
        "evaluation": {"every": 2, "num_tasks": 2, "test_split": "l0", "test_tasks": 2},
    }
    whole = configure(settings, {"runs_dir": str(tmp_path / "whole")})
    train(whole)
    config = configure(settings, {"runs_dir": str(tmp_path / "cut")})

    def stop(name: str, facts: dict[str, Any]) -> None:
        if name == "step" and facts["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, listen=stop)
    train(config, resume=True)
    assert differing_files(directory(whole), directory(config)) == []


def test_a_finished_run_goes_on_to_more_steps_and_refuses_other_settings(
    reference: Path, configure: Callable[..., Config]
) -> None:
    config = configure(DISTINCT_ACTIONS, {"steps": 2})
    train(config)
    with pytest.raises(StoreError, match="already holds a run; continue it with --resume"):
        train(config)
    with pytest.raises(CheckpointError, match="learner.lr: stored 0.001, given 0.1"):
        train(config.updated({"learner": {"lr": 0.1}}), resume=True)
    train(config.updated({"steps": 3}), resume=True)
    assert differing_files(reference, directory(config)) == []


# evaluation, budgets, controls


def test_the_best_step_on_validation_is_what_the_run_ends_with(configure: Callable[..., Config]) -> None:
    evaluation = {"every": 1, "num_tasks": 8, "temperature": 1.0, "test_split": "validation", "test_tasks": 8}
    environment = {"name": f"{__name__}:SayCabinet", "options": {"size": None, "admissible": None}}
    config = configure(
        {"steps": 4, "keep_checkpoints": 1, "learner": {"lr": 0.01}, "rollout": {"max_turns": 1}},
        {"environment": environment, "evaluation": evaluation},
    )
    heard: list[tuple[str, dict[str, Any]]] = []
    summary = train(config, listen=lambda event, facts: heard.append((event, facts)))
    start = next(facts for event, facts in heard if event == "evaluation")
    marks = [(start["success"], start["score"])]
    marks += [(row["eval/success"], row["eval/score"]) for row in metrics(config)]
    best = max(range(5), key=lambda step: (marks[step], -step))
    assert len(set(marks)) > 1
    assert summary["best"] == {"step": best, "success": marks[best][0], "score": marks[best][1]}
    kept = load_checkpoint(directory(config) / "checkpoints" / f"step-{best:06d}", names={"model"}).tensors["model"]
    assert all(torch.equal(value, kept[name]) for name, value in weights(directory(config)).items())
    # validation and test are the same tasks here, so the report must repeat the best mark
    assert (summary["after"]["success"], summary["after"]["score"]) == marks[best]
    assert (summary["before"]["success"], summary["before"]["score"]) == marks[0]
    assert summary["validation_before"] == summary["before"]


def test_a_token_budget_stops_the_run(configure: Callable[..., Config]) -> None:
    config = configure({"token_budget": 1})
    summary = train(config)
    assert (summary["steps"], len(metrics(config))) == (1, 1)
    generous = config.updated({"token_budget": summary["generated_tokens"] + 1})
    assert train(generous, resume=True)["steps"] == 2


def test_a_run_that_a_token_budget_ends_is_evaluated_and_saved_where_it_ends(configure: Callable[..., Config]) -> None:
    config = configure({"token_budget": 1, "save_every": 0, "evaluation": {"every": 5, "num_tasks": 2}})
    train(config)
    assert ["eval/success" in row for row in metrics(config)] == [True]
    assert list_checkpoints(directory(config))[-1].name == "step-000001"


def test_permuting_hands_the_same_rewards_to_other_leaves(configure: Callable[..., Config]) -> None:
    config = configure(DISTINCT_ACTIONS, {"steps": 1, "tasks_per_step": 6})
    permuting = config.updated({"name": "permuted", "advantage": {"permute": True}})
    train(config)
    train(permuting)
    plain, permuted = trees(config), trees(permuting)
    assert [tree.nodes for tree in plain] == [tree.nodes for tree in permuted]
    pairs = [([leaf.reward for leaf in one.leaves], [leaf.reward for leaf in two.leaves])
             for one, two in zip(plain, permuted, strict=True)]  # fmt: skip
    assert all(sorted(one) == sorted(two) for one, two in pairs)
    assert any(one != two for one, two in pairs)


def test_evaluating_needs_no_training_and_counts_every_sample(configure: Callable[..., Config]) -> None:
    config = configure({"evaluation": {"num_tasks": 3, "samples": 4, "temperature": 1.0}})
    result = evaluate(config, split="l1")
    assert (result.overall.n, sorted(result.pass_at)) == (12, [1, 2, 4])
    assert all(len(tree.leaves) == 4 and tree.task.split == "l1" for tree in result.trees)
    again = evaluate(config, split="l1")
    assert [tree.nodes for tree in again.trees] == [tree.nodes for tree in result.trees]


# kinds of models


def test_lora_trains_the_adapter_alone_and_another_run_goes_on_from_it(
    configure: Callable[..., Config], tiny_model: Path
) -> None:
    config = configure({"model": {"lora": {"rank": 2, "alpha": 4}}, "steps": 2, "learner": {"lr": 0.01}})
    train(config)
    adapter = directory(config) / "model" / "adapter_model.safetensors"
    saved = load_checkpoint(list_checkpoints(directory(config))[-1], names={"model"}).tensors["model"]
    assert all("lora_" in name for name in saved)
    assert all(value.abs().max() > 0 for name, value in saved.items() if "lora_B" in name)

    second = configure({"name": "second", "steps": 1, "model": {"lora": {"adapter": str(adapter.parent)}}})
    start = dict(open_session(second).policy.model.named_parameters())
    assert all(torch.equal(start[name], value) for name, value in saved.items())
    train(second)
    after = load_file(directory(second) / "model" / "adapter_model.safetensors")
    before = load_file(adapter)
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert not (directory(second) / "model" / "model.safetensors").exists()


def test_a_resumed_lora_run_ends_like_an_undisturbed_one(configure: Callable[..., Config], tmp_path: Path) -> None:
    lora = {"steps": 2, "model": {"lora": {"rank": 2}}, "loss": {"kl_coef": 0.1}}
    whole, cut = configure(lora, {"runs_dir": str(tmp_path / "whole")}), configure(lora)
    train(whole)
    train(cut.updated({"steps": 1}))
    train(cut, resume=True)
    assert differing_files(directory(whole), directory(cut)) == []


def test_a_hub_model_runs_through_the_same_settings(configure: Callable[..., Config], tmp_path: Path) -> None:
    """Tags of several tokens, a system prompt, tied embeddings with spare rows, an EOS that is not the padding."""
    texts = ["You see a cabinet 1.", "<explore>look</explore><action>go to desk 1</action>"] * 4
    hub = write_random_hub_model(tmp_path / "hub", texts=texts, vocab_size=400, hidden=16, heads=2, kv_heads=1)
    changes = {"steps": 1, "reward": {"name": f"{__name__}:length"}, "model": {"path": str(hub), "lora": {"rank": 2}}}
    config = configure(changes)
    train(config)
    (row,) = metrics(config)
    assert row["learner/grad_norm"] > 0 and row["learner/skipped_steps"] == 0
    assert trees(config)[0].nodes[0].token_ids[0] == load_model_and_tokenizer(hub)[1].get_vocab()["<|im_start|>"]


def test_the_spark_preset_runs_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    """Only sizes are replaced, and the rate, so that mini-batches of one rollout differ from each other."""
    sizes = {"rollout": {"num_leaves": 6, "num_roots": 2, "max_turns": 3, "max_response_tokens": 24},
             "learner": {"minibatch_rows": 8, "lr": 1e-3}, "steps": 1, "tasks_per_step": 2}  # fmt: skip
    places = {"runs_dir": str(tmp_path), "model": {"path": str(tiny_model)}, "environment": SURROUNDINGS["environment"]}
    config = Config.build(PRESETS["spark"], sizes, places, {"environment": {"options": {"admissible": True}}})
    train(config)
    (row,) = metrics(config)
    assert row["learner/optimizer_steps"] >= 2
    assert row["losses/kl"] > 0
    for tree in trees(config):
        assert sum(leaf.multiplicity for leaf in tree.leaves) == 6
        prompts = [node for node in tree.nodes if node.role == "prompt"]
        assert all(node.restart for node in prompts)
        # a window begins anew: its stream is the prompt alone
        assert all(tree.stream(node.index) == node.token_ids for node in prompts)
        scores = {leaf.reward for leaf in tree.leaves} | {
            step for leaf in tree.leaves for step in leaf.step_rewards or ()
        }
        assert scores <= {0.0, -0.1, 10.0}


# plug-ins


def with_lock(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings with the environment of the documentation, as a user's module."""
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    source = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Lock" in block)
    (folder / "user_lock.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    return config.updated({"environment": {"name": "user_lock:Lock"}}).model_copy(
        update={"environment": config.environment.model_copy(update={"name": "user_lock:Lock", "options": {}})}
    )


def test_an_environment_of_ones_own(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_lock(configure({"steps": 1}), tmp_path, monkeypatch)
    train(config)
    assert {tree.task.kind for tree in trees(config)} == {"lock"}
    assert trees(config)[0].observation == "0 of 3 lights are on."


def test_what_an_environment_says_of_its_episodes_is_logged(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_lock(configure({"steps": 1, "evaluation": {"every": 1, "num_tasks": 2}}), tmp_path, monkeypatch)
    lock = environment_class("user_lock:Lock")
    said = {"lock/tries": 2.5, "lock/unknown": None}
    monkeypatch.setattr(lock, "figures", classmethod(lambda cls, records, **options: said))
    train(config)
    (row,) = [row for row in metrics(config) if "eval/success" in row and row["step"] == 0]
    assert row["eval/lock/tries"] == 2.5 and "eval/lock/unknown" not in row


def test_a_reward_of_ones_own(reference: Path) -> None:
    for tree in TreeStore(reference / "trees").read_trees():
        for leaf in tree.leaves:
            assert leaf.reward == len({node.step.action for node in tree.responses(leaf) if node.step})


def test_an_environment_that_cannot_fork_is_refused_unless_nothing_branches(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_lock(configure({"steps": 1}), tmp_path, monkeypatch)
    import user_lock

    monkeypatch.setattr(user_lock.Lock, "fork_rung", "none")
    with pytest.raises(CannotFork, match="rollout.criterion=chain"):
        train(config)
    train(config.updated({"name": "chain", "rollout": {"criterion": "chain"}}))


def test_episodes_that_fail_are_counted_and_left_out(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_lock(configure({"steps": 1, "rollout": {"criterion": "chain"}}), tmp_path, monkeypatch)
    import user_lock

    whole_step, calls = user_lock.Lock.step, iter(range(10**6))

    def step(self: Any, action: str) -> Any:
        if next(calls) == 1:
            raise ZeroDivisionError("the engine broke")
        return whole_step(self, action)

    monkeypatch.setattr(user_lock.Lock, "step", step)
    train(config)
    (row,) = metrics(config)
    assert (row["rollout/failed_leaves"], row["rollout/leaves"]) == (1, 4)
    (failed,) = [leaf for tree in trees(config) for leaf in tree.leaves if leaf.status == "failed"]
    assert failed.failure is not None and "ZeroDivisionError: the engine broke" in failed.failure
    assert (failed.reward, failed.advantages) == (None, None)


# mistakes


def test_a_context_that_is_too_long_ends_the_episode_and_is_counted(configure: Callable[..., Config]) -> None:
    config = configure({"steps": 1, "context": {"max_prompt_tokens": 5}})
    train(config)
    (row,) = metrics(config)
    assert row["rollout/overflow"] == 1.0
    failures = {leaf.failure for tree in trees(config) for leaf in tree.leaves}
    assert all("max_prompt_tokens is 5" in (failure or "") for failure in failures)


def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="data=\\[FILE\\]"):
        train(configure({"learner": {"kind": "sft"}}))
    with pytest.raises(TaskError, match="has no tasks"):
        train(configure({"name": "empty", "environment": {"num_tasks": 0}}))
    with pytest.raises(ConfigError, match="set model.path"):
        train(configure({"name": "none", "model": {"path": None}}))
