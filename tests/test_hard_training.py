"""Whole runs with hard sampling, rescues, decay and collapse: what they log, and that they repeat to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import without_flushing
from small_runs import differing_files
from tool_runs import random_model, tool_config

from firesteel.config import Config
from firesteel.environments.tool_calls import ToolCalls
from firesteel.errors import ConfigError
from firesteel.fewshot import is_guided
from firesteel.files import read_jsonl
from firesteel.hard_sampling import STATUSES, HardSampling, Ledger, ledger_table
from firesteel.policy import load_tasks
from firesteel.recipes import RecipeSession
from firesteel.store import TreeStore
from firesteel.train import open_session, train
from firesteel.tree import Tree

HARD: dict[str, Any] = {
    "curriculum": {
        "name": "hard_sampling", "options": {"steps_per_round": 2, "rollouts": 3, "max_fewshot_attempts": 2},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def fast_disk() -> Iterator[None]:
    with without_flushing():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("random"))


@pytest.fixture
def configure(model: Path, tmp_path: Path) -> Callable[..., Config]:
    return lambda *changes: tool_config(model, tmp_path, *changes)


@pytest.fixture(scope="module")
def hard_run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an undisturbed run with hard sampling, which nobody writes into."""
    with without_flushing():
        config = tool_config(model, tmp_path_factory.mktemp("hard"), HARD)
        train(config)
    return directory(config)


def directory(config: Config) -> Path:
    return Path(config.runs_dir) / config.name


def rows(run: Path) -> list[dict[str, Any]]:
    return read_jsonl(run / "metrics.jsonl")


def trees(run: Path, *steps: int) -> list[Tree]:
    return list(TreeStore(run / "trees").read_trees(steps or None))


def test_rounds_probe_and_their_tokens_count(hard_run: Path) -> None:
    metrics = rows(hard_run)
    assert ["hard/probe_tokens" in row for row in metrics] == [True, False, True, False]
    spent = 0.0
    for row in metrics:
        spent += row["rollout/generated_tokens"] + row.get("hard/probe_tokens", 0.0)
        assert row["rollout/total_generated_tokens"] == spent
    assert metrics[0]["hard/raw"] + metrics[0]["hard/guided"] + metrics[0]["hard/hard"] == 12
    assert metrics[0]["hard/raw"] > 0 and metrics[0]["hard/guided"] > 0


def test_waves_cost_little_more_than_one_rollout_at_a_time(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def probed(name: str, waves: tuple[int, ...] | None = None) -> tuple[float, float]:
        if waves is not None:
            monkeypatch.setattr("firesteel.hard_sampling.waves_of", lambda rollouts: waves)
        options = {"name": "hard_sampling", "options": {"rollouts": 10, "mode": "drop"}}
        config = configure({"name": name, "steps": 1, "curriculum": options, "environment": {"num_tasks": 120}})
        train(config)
        (row,) = rows(directory(config))
        return row["hard/probe_tokens"], row["hard/probe_overhead"]

    in_waves, overhead = probed("waves")
    assert 1.02 < overhead <= 1.3
    one_by_one, none = probed("one", (1,) * 10)
    assert none == 1.0 and 1.0 < in_waves / one_by_one <= 1.3
    at_once, much = probed("at once", (10,))
    assert much > 1.5 and at_once / one_by_one > 1.5


def test_the_rate_decays_by_round(hard_run: Path) -> None:
    assert [row["learner/lr"] for row in rows(hard_run)] == pytest.approx([1e-3, 1e-3, 8e-4, 8e-4])


def test_the_ledger_lies_in_the_run(hard_run: Path) -> None:
    entries = Ledger(hard_run / "hard_samples.jsonl").read()
    probed = [entry for entry in entries if entry["solved_by"] != "training"]
    assert [(entry["step"], entry["round"]) for entry in probed] == [(0, 0)] * 12 + [(2, 1)] * 12
    assert set(ledger_table(entries)) == {0, 1}


def test_hard_samples_are_trained_under_the_prompt_they_were_sampled_with(hard_run: Path) -> None:
    shown = [tree for tree in trees(hard_run) if is_guided(tree.task)]
    assert shown
    for tree in shown:
        assert tree.group == tree.task.id and "Example: " in tree.observation
    guided = [sum(is_guided(tree.task) for tree in trees(hard_run, step)) / 3 for step in range(4)]
    assert [row["rescue/guided_leaves"] for row in rows(hard_run)] == pytest.approx(guided)


def test_rewards_are_logged_by_difficulty(hard_run: Path) -> None:
    names = {name.removeprefix("rollout/reward/") for row in rows(hard_run) for name in row if "/reward/" in name}
    assert names and names <= {*STATUSES.values(), *(f"{status}_few_shot" for status in STATUSES.values())}


@pytest.mark.parametrize("stopped_at", [0, 1, 2, 3])
@pytest.mark.parametrize("event", ["rollout", "step"])
def test_a_run_that_is_stopped_and_resumed_ends_like_an_undisturbed_one(
    hard_run: Path, configure: Callable[..., Config], stopped_at: int, event: str
) -> None:
    config = configure(HARD)
    finished_steps = 0

    def stop(name: str, facts: dict[str, Any]) -> None:
        nonlocal finished_steps
        if name == event and finished_steps == stopped_at:
            raise KeyboardInterrupt
        finished_steps += name == "step"

    with pytest.raises(KeyboardInterrupt):
        train(config, listen=stop)
    train(config, resume=True)
    assert differing_files(hard_run, directory(config)) == []


def test_a_plain_arm_can_have_the_same_decay(configure: Callable[..., Config]) -> None:
    config = configure({"learner": {"lr_decay": 0.8, "lr_decay_every": 2}})
    train(config)
    assert [row["learner/lr"] for row in rows(directory(config))] == pytest.approx([1e-3, 1e-3, 8e-4, 8e-4])


def test_a_plain_arm_can_have_the_same_decay_by_tokens(hard_run: Path, configure: Callable[..., Config]) -> None:
    round_tokens = int(rows(hard_run)[1]["rollout/total_generated_tokens"])
    plain = {"learner": {"lr_decay": 0.8, "lr_decay_tokens": round_tokens}, "token_budget": 2 * round_tokens}
    config = configure(plain, {"steps": 100})
    train(config)
    metrics = rows(directory(config))
    assert len(metrics) > 4  # more updates of as many tokens as the two rounds, and the same rates
    before = [0, *(row["rollout/total_generated_tokens"] for row in metrics[:-1])]
    assert [row["learner/lr"] for row in metrics] == pytest.approx(
        [1e-3 * 0.8 ** (tokens // round_tokens) for tokens in before]
    )
    assert {row["learner/lr"] for row in metrics} == {1e-3, 8e-4}


def test_a_probe_that_leaves_nothing_to_train_with_is_not_played(
    hard_run: Path, configure: Callable[..., Config]
) -> None:
    metrics = rows(hard_run)
    spent, probe = metrics[1]["rollout/total_generated_tokens"], metrics[0]["hard/probe_tokens"]
    looks = {"evaluation": {"every": 50, "num_tasks": 2}}
    short = configure(HARD, looks, {"name": "short", "token_budget": int(spent + probe) - 1, "save_every": 0})
    summary = train(short)
    assert (summary["steps"], summary["generated_tokens"], summary["next_probe_tokens"]) == (2, spent, probe)
    assert "eval/success" in rows(directory(short))[-1]  # the last weights are looked at, as where the budget ends
    session = RecipeSession(True, lambda event, facts: None)
    assert session.train(short) == summary  # nothing to go on with
    enough = configure(HARD, looks, {"name": "enough", "token_budget": int(spent + probe)})
    assert train(enough)["steps"] > 2
    more = short.updated({"token_budget": 10**6})
    assert session.train(more)["steps"] == 4
    again = configure(HARD, looks, {"name": "short", "token_budget": 10**6, "runs_dir": f"{short.runs_dir}/again"})
    train(again)
    assert [row["learner/lr"] for row in rows(directory(more))] == [row["learner/lr"] for row in rows(directory(again))]


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_run_without_its_last_probe_is_the_same_when_resumed(
    hard_run: Path, configure: Callable[..., Config], stopped_at: int
) -> None:
    spent = int(rows(hard_run)[1]["rollout/total_generated_tokens"])
    changes = (HARD, {"token_budget": spent + 1, "evaluation": {"every_tokens": spent // 5, "num_tasks": 2}})
    whole, cut = (configure(*changes, {"name": name}) for name in ("whole", "cut"))
    train(whole)
    finished_steps = 0

    def stop(name: str, facts: dict[str, Any]) -> None:
        nonlocal finished_steps
        finished_steps += name == "step"
        if finished_steps == stopped_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cut, listen=stop)
    train(cut, resume=True)
    for name in ("metrics.jsonl", "hard_samples.jsonl"):
        assert (directory(whole) / name).read_bytes() == (directory(cut) / name).read_bytes()


LOOKS: dict[str, Any] = {"steps": 100, "evaluation": {"every_tokens": 200, "num_tasks": 2}, "token_budget": 3000}


def looked_at(run: Path) -> list[tuple[float, bool]]:
    return [(row["rollout/total_generated_tokens"], "eval/success" in row) for row in rows(run)]


def test_arms_are_looked_at_equally_often_at_equal_tokens(configure: Callable[..., Config]) -> None:
    plain, hard = configure(LOOKS, {"name": "plain"}), configure(LOOKS, HARD, {"name": "hard"})
    hard = hard.updated({"curriculum": {"options": {"steps_per_round": 12}}})
    for config in (plain, hard):
        train(config)
        looks, due = 0, 0
        for tokens, looked in looked_at(directory(config))[:-1]:
            due = int(tokens // 200)
            assert looked == (due > looks)  # one a step, until all are made up for
            looks += looked
        assert due >= 8 and due - looks <= 3
    assert looked_at(directory(hard))[0][0] > 400  # one step of two looks: its probe


def test_looks_survive_a_resume(configure: Callable[..., Config]) -> None:
    changes = (LOOKS, HARD, {"curriculum": {"options": {"steps_per_round": 12}}, "save_every": 1})
    whole, cut = (configure(*changes, {"name": name}) for name in ("whole", "cut"))
    train(whole)
    steps = 0

    def stop(name: str, facts: dict[str, Any]) -> None:
        nonlocal steps
        steps += name == "step"
        if steps == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cut, listen=stop)
    train(cut, resume=True)
    assert looked_at(directory(cut)) == looked_at(directory(whole))


@pytest.mark.parametrize("name", ["evaluation.every_tokens", "learner.lr_decay_tokens"])
def test_what_generates_nothing_counts_no_tokens(configure: Callable[..., Config], name: str) -> None:
    section, _, key = name.partition(".")
    with pytest.raises(ConfigError, match=f"{name} counts generated tokens, and learner.kind 'sft' generates none"):
        configure({"learner": {"kind": "sft"}}, {section: {key: 100}})


def test_a_rescue_regrows_failed_groups_and_its_tokens_count(configure: Callable[..., Config]) -> None:
    config = configure({"rescue": {"name": "few_shot", "options": {"attempts": 2}}, "steps": 6})
    summary = train(config)
    metrics = rows(directory(config))
    assert sum(row["rescue/rescued"] for row in metrics) > 0
    assert sum(row["rescue/tokens"] for row in metrics) > 0
    regrown = [tree for tree in trees(directory(config)) if is_guided(tree.task)]
    assert regrown and all(any(leaf.success for leaf in tree.leaves) for tree in regrown)
    assert all(leaf.advantages is not None for tree in regrown for leaf in tree.counting_leaves())
    kept = sum(tree.generated_tokens() for tree in trees(directory(config)))
    # replaced trees were paid for, too, and so were regrown ones that failed again
    assert summary["generated_tokens"] > kept


def test_resampled_groups_come_from_the_curriculum(configure: Callable[..., Config]) -> None:
    config = configure({"rescue": {"name": "resample"}, "reward": {"name": "outcome"}, "steps": 3})
    train(config)
    assert all(len(trees(directory(config), step)) == 3 for step in range(3))
    assert sum(row["rescue/resampled"] for row in rows(directory(config))) > 0


def test_an_unknown_rescue_is_refused_before_a_directory_is_made(configure: Callable[..., Config]) -> None:
    config = configure({"rescue": {"name": "few_shots"}})
    with pytest.raises(ConfigError, match="unknown rescue 'few_shots' .did you mean 'few_shot'"):
        train(config)
    assert not directory(config).exists()


BREAKING: dict[str, Any] = {
    "environment": {"name": "tool_runs:Varied", "options": {"terse": True, "schemas": "signature", "num_tools": 6}},
    "learner": {"lr": 3.0},
    "steps": 8,
    "evaluation": {"every": 1, "num_tasks": 4, "temperature": 1.0},
}


def test_a_collapse_is_reported_and_can_stop_the_run(configure: Callable[..., Config]) -> None:
    heard: list[str] = []

    def hear(event: str, facts: dict[str, Any]) -> None:
        heard.extend([facts["text"]] if event == "note" else [])

    config = configure(BREAKING, {"stability": {"on_collapse": "stop", "log_kl": True}})
    summary = train(config, listen=hear)
    assert summary["stopped"] and summary["steps"] < 8
    (collapse,) = summary["collapses"]
    assert heard[0].startswith("collapsed: success on validation fell from ")
    assert any("KL to the start" in reason for reason in collapse["reasons"])
    metrics = rows(directory(config))
    assert [row["stability/collapses"] for row in metrics] == [0] * (len(metrics) - 1) + [1]
    assert all({"losses/kl", "rollout/response_tokens", "losses/entropy"} <= row.keys() for row in metrics)
    assert train(config, resume=True)["steps"] == summary["steps"]


def test_a_collapsed_run_can_go_back_to_its_best_weights_at_a_lower_rate(configure: Callable[..., Config]) -> None:
    config = configure(BREAKING, {"stability": {"on_collapse": "roll_back", "roll_back_lr": 1e-4}})
    summary = train(config)
    metrics = rows(directory(config))
    at = next(place for place, row in enumerate(metrics) if row["stability/collapses"] == 1)
    rates = [row["learner/lr"] for row in metrics]
    assert rates[: at + 1] == [3.0] * (at + 1) and rates[at + 1] == pytest.approx(3e-4)
    assert metrics[at]["eval/success"] == 0.0 and metrics[at + 1]["eval/success"] > 0.5
    assert (summary["steps"], summary["stopped"]) == (8, False)


class Stream(ToolCalls):
    """Gives its tasks one by one."""

    @classmethod
    def tasks(cls, split: str, **options: Any) -> Any:
        return Counted(super().tasks(split, **options))


class Counted:
    """A sequence that counts what is read of it; it is no list."""

    def __init__(self, tasks: Any) -> None:
        self._tasks = tasks
        self.num_read = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, place: Any) -> Any:
        self.num_read += 1
        return self._tasks[place]


def test_tasks_stay_where_the_environment_keeps_them(configure: Callable[..., Config]) -> None:
    config = configure({"environment": {"name": f"{__name__}:Stream", "options": {"num_tools": 6}}})
    tasks = load_tasks(config, "train", 12)
    assert isinstance(tasks, Counted)
    source = open_session(config).source
    source.sample(3)
    assert source.tasks.num_read <= 3


def test_the_probe_has_its_own_temperature() -> None:
    tasks = ToolCalls.tasks("train", count=2)
    assert HardSampling(tasks, seed=0).temperature == 0.7
    assert HardSampling(tasks, seed=0, temperature=None).temperature is None
