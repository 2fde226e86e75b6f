"""Stored episodes as trees: the stream that a policy would have seen and written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from toys import builder, grower, script, tokenizer

from firesteel.annotate import EpisodeStep, ExpertEpisode, collect_expert_episodes, save_episodes
from firesteel.demonstrations import StoredTrees, episode_texts, episode_tree, read_texts, response_text
from firesteel.environments.household import Household
from firesteel.errors import StoreError
from firesteel.packing import pack
from firesteel.random_play import collect_random_episodes

OPTIONS = {"size": "small", "admissible": False}
TASKS = tuple(Household.tasks("train", count=6, size="small"))


@lru_cache(maxsize=1)
def episodes() -> tuple[ExpertEpisode, ...]:
    """Expert episodes of six kinds of tasks."""
    return tuple(collect_expert_episodes(Household, TASKS, OPTIONS))


def untagged(episode: ExpertEpisode) -> ExpertEpisode:
    """What nobody annotated, as random play is stored."""
    return replace(episode, steps=tuple(replace(step, explore=None, reason="") for step in episode.steps))


def unfinished(episode: ExpertEpisode, num_steps: int) -> ExpertEpisode:
    """The beginning of an episode, as a step limit would have cut it."""
    seen = episode.steps[num_steps].observation
    return replace(episode, steps=episode.steps[:num_steps], final_observation=seen, success=False)


@pytest.mark.parametrize("mode", ["full", "window"])
@pytest.mark.parametrize("variant", ["tagged", "untagged", "unfinished"])
def test_the_tree_is_what_a_rollout_of_the_same_responses_records(mode: str, variant: str) -> None:
    for number, episode in enumerate(episodes()):
        if variant == "untagged":
            episode = untagged(episode)
        if variant == "unfinished":
            episode = unfinished(episode, 3)
        lines = {(0, 0, turn): response_text(step) for turn, step in enumerate(episode.steps)}
        growing = grower(
            script(lines, [TASKS[number]]), lambda: Household(**OPTIONS), mode=mode, num_leaves=1, num_roots=1,
            max_turns=len(episode.steps),
        )  # fmt: skip
        (played,) = growing.grow([TASKS[number]], seed=0)
        stored = episode_tree(episode, builder(mode))
        stored.validate()
        fields = [
            (node.parent, node.role, node.turn, node.token_ids, node.restart, node.width) for node in stored.nodes
        ]
        assert fields == [
            (node.parent, node.role, node.turn, node.token_ids, node.restart, node.width) for node in played.nodes
        ]
        for mine, theirs in zip(stored.nodes, played.nodes, strict=True):
            names = ("text", "action", "tag", "explore", "valid", "reasoning", "truncated_response", "observation")
            assert [getattr(mine.step, name, None) for name in names] == [
                getattr(theirs.step, name, None) for name in names
            ]
        (leaf,), (other,) = stored.leaves, played.leaves
        assert (leaf.node, leaf.root, leaf.status, leaf.success) == (
            other.node,
            other.root,
            other.status,
            other.success,
        )
        assert (stored.goal, stored.observation, stored.group) == (played.goal, played.observation, played.group)


def test_full_is_one_row_and_window_one_row_a_step() -> None:
    episode = episodes()[0]
    num_tokens = sum(len(builder().encode_response(response_text(step))) for step in episode.steps)
    for mode, num_rows in (("full", 1), ("window", len(episode.steps))):
        rows = pack([episode_tree(episode, builder(mode))], weighting="node").rows
        assert len(rows) == num_rows
        assert sum(int(row.loss_mask.sum()) for row in rows) == num_tokens
        assert all(set(row.weight[row.loss_mask]) == {1.0} for row in rows)


def test_prompts_can_be_learned_too() -> None:
    tree = episode_tree(episodes()[0], builder("full"))
    (row,) = pack([tree], weighting="node", prompt_weight=1.0).rows
    assert row.loss_mask.tolist() == [False] + [True] * (len(row) - 1)  # nothing predicts the first token


def test_response_texts_by_hand() -> None:
    assert response_text(EpisodeStep("", "look")) == "<action>look</action>"
    assert response_text(EpisodeStep("", "look", True, "why")) == "<explore>why</explore><action>look</action>"
    assert response_text(EpisodeStep("", "look", False, "so")) == "<think>so</think><action>look</action>"


def stored(path: Path, count: int = 5) -> list[str]:
    """Two files of episodes."""
    save_episodes(path / "a.jsonl", episodes()[:2])
    save_episodes(path / "b.jsonl", episodes()[2:count])
    return [str(path / "a.jsonl"), str(path / "b.jsonl")]


def test_texts_for_a_tokenizer(tmp_path: Path) -> None:
    texts = read_texts(stored(tmp_path))
    assert texts == [text for episode in episodes()[:5] for text in episode_texts(episode)]
    first = episodes()[0]
    assert texts[:3] == [first.goal, first.steps[0].observation, response_text(first.steps[0])]


def drawn(source: StoredTrees, *counts: int) -> list[str]:
    return [tree.task.id for count in counts for tree in source.sample(count)]


def test_every_episode_comes_once_a_pass_in_a_seeded_order(tmp_path: Path) -> None:
    files = stored(tmp_path)
    source = StoredTrees(files, builder(), seed=1)
    ids = drawn(source, 2, 3, 4, 6)
    passes = [tuple(ids[start : start + 5]) for start in (0, 5, 10)]
    assert all(set(one) == {task.id for task in TASKS[:5]} for one in passes) and len(set(passes)) == 3
    assert (
        drawn(StoredTrees(iter(files), builder(), seed=1), 15)
        == ids
        != drawn(StoredTrees(files, builder(), seed=2), 15)
    )
    trees = {id(tree) for tree in source.sample(10)}
    assert len(trees) == 5  # built once


def test_a_restored_source_goes_on(tmp_path: Path) -> None:
    files = stored(tmp_path)
    source = StoredTrees(files, builder(), seed=1)
    drawn(source, 3, 4)
    again = StoredTrees(files, builder(), seed=1)
    again.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert drawn(again, 4, 4) == drawn(source, 4, 4)


def test_files_without_episodes_are_named(tmp_path: Path) -> None:
    empty: Any = replace(episodes()[0], steps=())
    save_episodes(tmp_path / "none.jsonl", [])
    save_episodes(tmp_path / "empty.jsonl", [empty])
    files = (str(tmp_path / name) for name in ("none.jsonl", "empty.jsonl"))
    with pytest.raises(StoreError, match=r"none.jsonl, .*empty.jsonl: no episode with a step; collect some"):
        StoredTrees(files, builder(), seed=0)


def test_observations_survive_the_tokenizer() -> None:
    """The stream decodes to what was seen and said, so nothing of an episode is lost in its tokens."""
    episode = episodes()[1]
    tree = episode_tree(episode, builder("full"))
    text = tokenizer().decode(tree.stream(tree.leaves[0].node))
    parts = [episode.goal, *(part for step in episode.steps for part in (step.observation, response_text(step)))]
    positions = [text.find(part) for part in parts]
    assert -1 not in positions and positions[0] < positions[1] < positions[2]


@pytest.mark.parametrize("mode", ["full", "window"])
def test_drawn_actions_are_fed_and_thoughts_about_them_are_said(mode: str) -> None:
    played = collect_random_episodes(Household, TASKS, {"size": "small"}, steps=4, seed=0, narrate=True)
    tree = episode_tree(played[0], builder(mode))
    decode = tokenizer().decode
    said = [decode(node.token_ids) for node in tree.nodes if node.role == "response"]
    assert [text.partition(">")[2].partition("<")[0] for text in said] == [step.reason for step in played[0].steps]
    fed = [decode(tree.nodes[node.index + 1].token_ids) for node in tree.nodes if node.role == "response"]
    assert [text.partition(">")[2].partition("<")[0] for text in fed] == [step.action for step in played[0].steps]
    trained = sum(int(row.loss_mask.sum()) for row in pack([tree], weighting="node").rows)
    assert trained == sum(len(node.token_ids) for node in tree.nodes if node.role == "response")
