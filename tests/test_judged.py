"""Judged trajectories as trees: rewards by hand, filters, refusals, and which tokens are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_rows import trajectory, write_rows
from toys import builder, tokenizer

from firesteel.config import PpoConfig
from firesteel.errors import ConfigError, StoreError
from firesteel.judged import (
    is_kept,
    is_trajectory_file,
    load_trajectories,
    plain,
    require_variance,
    step_reward,
    trajectory_texts,
    trajectory_tree,
)
from firesteel.packing import pack


def reward(chosen: float, best: float, sound: bool, *, correct: bool = False, **settings: Any) -> float:
    row = trajectory(1, [("dates", chosen, best, sound)], answer="B" if correct else "A")[0]
    return step_reward(row, PpoConfig(**settings))


# R = rho (best - chosen) - (1 - rho)(1 - process_ok)


def test_reward_by_hand() -> None:
    assert reward(7.0, 9.5, True, rho=0.4) == pytest.approx(1.0)  # 0.4 * 2.5
    assert reward(7.0, 9.5, False, rho=0.4) == pytest.approx(0.4)  # 1.0 - 0.6
    assert reward(9.5, 9.5, False, rho=0.0) == -1.0
    assert reward(6.5, 9.5, False, rho=1.0) == 3.0
    assert reward(9.5, 9.5, True, rho=0.4) == 0.0


def test_the_unit_scale_makes_the_gap_a_share_of_ten() -> None:
    assert reward(7.0, 9.5, False, rho=0.4, reward_scale="unit") == pytest.approx(0.4 * 0.25 - 0.6)


def test_outcome_weight_counts_right_answers_only() -> None:
    assert reward(9.0, 9.0, True, outcome_weight=0.25, correct=True) == 0.25
    assert reward(9.0, 9.0, True, outcome_weight=0.25, correct=False) == 0.0


def test_the_score_itself_as_reward() -> None:
    assert reward(7.0, 9.5, False, reward="score") == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("row_filter", "kept"),
    [
        ("none", [True, True, True, True]),
        ("process_ok", [True, False, True, True]),
        ("correct", [True, True, False, False]),
        ("process_ok_and_correct", [True, False, False, False]),
        ("all_process_ok", [False, False, True, True]),
    ],
)
def test_filters(row_filter: Any, kept: list[bool]) -> None:
    mixed = trajectory(1, [("a", 7, 9, True), ("b", 7, 9, False)], answer="B")
    sound = trajectory(2, [("a", 7, 9, True), ("b", 7, 9, True)], answer="C")
    assert [is_kept(row, rows, row_filter) for rows in (mixed, sound) for row in rows] == kept


def test_a_reward_without_variance_is_refused_naming_its_terms() -> None:
    rows = trajectory(1, [("a", 9, 9, True), ("b", 8, 8, True)])
    settings = PpoConfig(rho=0.25, filter="process_ok")
    with pytest.raises(ConfigError) as caught:
        require_variance([step_reward(row, settings) for row in rows], rows, settings)
    message = str(caught.value)
    assert "no variance over the 2 steps (R = 0)" in message
    assert "best - chosen is 0 on every step and has the weight rho = 0.25" in message
    assert "process_ok is true on every step and has the weight 0.75" in message
    assert "ppo.filter is 'process_ok'" in message
    varied = trajectory(1, [("a", 9, 9, True), ("b", 8, 9, True)])
    with pytest.raises(ConfigError, match="best - chosen varies and has the weight rho = 0; process_ok is true"):
        require_variance([0.0, 0.0], varied, PpoConfig(rho=0))
    require_variance([0.0, 1.0], varied, PpoConfig(rho=1))
    with pytest.raises(ConfigError, match="leaves no step"):
        require_variance([], [], PpoConfig(filter="correct"))


# Trees


STEPS = [("dates", 7.0, 9.0, True), ("cot", 9.0, 9.0, False)]


def texts(tree: Any, role: str) -> list[str]:
    return [tokenizer().decode(node.token_ids) for node in tree.nodes if node.role == role]


def test_a_trajectory_is_the_stream_that_a_policy_would_have_seen_and_written() -> None:
    tree = trajectory_tree(trajectory(1, STEPS), builder(), [True, True], [0.5, -0.25])
    first, second = texts(tree, "response")
    assert first.startswith("<think>go on</think><action>dates: left 1</action>")
    assert second.startswith("<think>go on</think><action>cot: left 1</action>")
    opening, after = texts(tree, "prompt")
    assert "which 1\nA. mug\nB. desk\nC. shelf" in opening and "you did 0" in after
    assert tree.leaves[0].step_rewards == [0.5, -0.25] and tree.group == "q1"
    tree.validate()


def test_a_step_that_is_left_out_is_context() -> None:
    whole = trajectory_tree(trajectory(1, STEPS), builder(), [True, True], [0.5, -0.25])
    part = trajectory_tree(trajectory(1, STEPS), builder(), [False, True], [0.5, -0.25])
    assert len(texts(part, "response")) == 1 and part.leaves[0].step_rewards == [-0.25]
    assert part.stream(part.leaves[0].node) == whole.stream(whole.leaves[0].node)
    (row,) = pack([part]).rows
    assert row.loss_mask.sum() == len(part.responses(part.leaves[0])[0].token_ids)
    none = trajectory_tree(trajectory(1, STEPS), builder(), [False, False], [0.5, -0.25])
    assert none.leaves[0].masked and pack([none]).rows == []


def test_the_call_alone_is_trained_after_the_same_stream() -> None:
    whole = trajectory_tree(trajectory(1, STEPS), builder(), [True, True], [0.5, -0.25])
    calls = trajectory_tree(trajectory(1, STEPS), builder(), [True, True], [0.5, -0.25], action="call")
    assert [text.partition("<|eos|>")[0] for text in texts(calls, "response")] == [
        "<action>dates: left 1</action>",
        "<action>cot: left 1</action>",
    ]
    assert calls.stream(calls.leaves[0].node) == whole.stream(whole.leaves[0].node)


def test_the_answer_is_a_step_of_its_own_where_it_is_worth_something() -> None:
    tree = trajectory_tree(trajectory(1, STEPS), builder(), [True, True], [0.5, -0.25], answer_reward=1.0)
    assert "<action>answer: B</action>" in texts(tree, "response")[2]
    assert tree.leaves[0].step_rewards == [0.5, -0.25, 1.0]
    silent = trajectory_tree(trajectory(1, STEPS, answer=None), builder(), [True, True], [0.5, 0.0], answer_reward=1.0)
    assert len(texts(silent, "response")) == 2


def test_an_answer_may_be_learnt_as_the_option_s_words() -> None:
    rows = trajectory(1, STEPS)
    tree = trajectory_tree(rows, builder(), [True, True], [0.5, -0.25], answer_reward=1.0, answer="words")
    assert "<action>answer: desk</action>" in texts(tree, "response")[2]
    for options in (["B", "A", "C"], ["x", "7", "7"], ["x", "<action>", "y"]):  # not read as B
        unclear = [row | {"mcq_options": options} for row in rows]
        tree = trajectory_tree(unclear, builder(), [True, True], [0.5, -0.25], answer_reward=1.0, answer="words")
        assert "<action>answer: B</action>" in texts(tree, "response")[2]


def test_windows_train_every_step_in_a_row_of_its_own() -> None:
    tree = trajectory_tree(trajectory(1, STEPS), builder("window"), [True, True], [0.5, -0.25])
    rows = pack([tree]).rows
    assert len(rows) == 2
    assert all(np.flatnonzero(row.loss_mask)[-1] == len(row) - 1 for row in rows)


def test_tags_inside_what_a_model_wrote_do_not_end_its_step() -> None:
    assert plain("a</think><action>b") == "ab"
    rows = trajectory(1, [("dates", 7, 9, True)])
    rows[0]["thought"] = "</think><action>lose</action>"
    tree = trajectory_tree(rows, builder(), [True], [0.0])
    assert texts(tree, "response")[0].startswith("<think>lose</think><action>dates")


# Files


def test_files_of_trajectories_are_told_from_others(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [trajectory(1, STEPS)])
    assert is_trajectory_file(path)
    (tmp_path / "other.jsonl").write_text('{"task_id": "x"}\n')
    assert not is_trajectory_file(tmp_path / "other.jsonl")
    with pytest.raises(StoreError, match="does not exist"):
        is_trajectory_file(tmp_path / "absent.jsonl")
    found = list(trajectory_texts([path]))
    assert any("dates: left 1" in text for text in found) and any("answer: B" in text for text in found)


def test_an_answer_beyond_the_options_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [trajectory(1, STEPS, answer="D")])
    with pytest.raises(StoreError, match="the answer 'D' is none of the options A to C"):
        load_trajectories([path])
    without = [row | {"mcq_options": []} for row in trajectory(1, STEPS)]
    with pytest.raises(StoreError, match=r"the answer 'B' is none of the options \(there are none\)"):
        load_trajectories([write_rows(tmp_path / "rows.jsonl", [without])])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(StoreError, match="no trajectory"):
        load_trajectories([tmp_path / "empty.jsonl"])
