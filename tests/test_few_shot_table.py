"""The table that decides whether hard sampling can show anything, by hand."""

from __future__ import annotations

import pytest
from tool_trees import Table, sample

from firesteel.few_shot_table import FewShotTable, PassRate, few_shot_table, hard_samples_left

TASKS = [sample(f"{kind}-{number}", "f", value=10 * place + number)
         for place, kind in enumerate(("easy", "helped", "hopeless")) for number in range(4)]  # fmt: skip


def policy(task, rollout: int) -> bool:
    return task.id.startswith("easy") or (task.id.startswith("helped") and bool(task.demonstrations))


def test_the_table_by_hand():
    table = few_shot_table(TASKS, Table(policy), seed=0)
    assert (table.num_tasks, table.unsolved) == (12, (8, 4, 4))
    assert [(rate.prompt, rate.solved, rate.n) for rate in table.rates] == [
        ("raw", 0, 8), ("random few-shot", 4, 8), ("selected few-shot", 4, 8),
    ]  # fmt: skip
    assert "| raw | 8 | 0.0% (0.0% to 32.4%) |" in table.text()
    assert "| selected few-shot | 4 | 50.0% (21.5% to 78.5%) |" in table.text()
    assert not table.lifts  # 21.5% lies below 32.4%: eight samples are too few


def test_what_only_had_bad_luck_is_found_by_the_fresh_probe_of_the_raw_prompt():
    played: list[str] = []

    def play(tasks, rollouts, name):
        played.append(name)
        return Table(lambda task, rollout: name.startswith("fresh"))(tasks, rollouts, name)

    table = few_shot_table(TASKS, play, seed=0, attempts=1)
    assert table.unsolved == (12, 12, 12)
    assert [rate.solved for rate in table.rates] == [12, 12, 12] and not table.lifts
    assert {"fresh/raw/wave-0", "fresh/selected few-shot/wave-0"} <= set(played)


def test_examples_help_for_certain_where_intervals_do_not_overlap():
    def rates(raw: int, selected: int) -> FewShotTable:
        middle = PassRate("random few-shot", selected, 100)
        return FewShotTable(200, (100, 50, 40), (PassRate("raw", raw, 100), middle, PassRate("s", selected, 100)), 10)

    # Wilson: 30 of 100 is 21.9% to 39.6%, 50 of 100 is 40.4% to 59.6%, 48 of 100 is 38.5% to 57.7%
    assert rates(30, 50).lifts
    assert not rates(30, 48).lifts


def test_nothing_hard_is_said_so():
    table = few_shot_table(TASKS[:4], Table(policy), seed=0)
    assert table.text().count("no hard sample") == 3
    assert not table.lifts


def test_hard_samples_left():
    left = hard_samples_left(TASKS, Table(policy), rollouts=3)
    assert (left.solved, left.n) == (4, 12)
    assert left.interval == pytest.approx((0.138, 0.609), abs=1e-3)
