"""Numbers worked out by hand for everything that reports count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from firesteel.errors import ConfigError
from firesteel.metrics import (
    ALL_KINDS,
    SPARK_T9,
    EpisodeRecord,
    bootstrap_interval,
    coverage,
    dead_group_share,
    entropy_of_counts,
    explore_ratio,
    paired_difference_interval,
    pass_at_k,
    repetitive_action_ratio,
    success_table,
    t_interval,
    t_quantile,
    tag_rate_by_interval,
    wilson_interval,
)


def test_wilson_interval_by_hand() -> None:
    # z² = 3.841459: (0.8 + 3.841459/20 ± 1.959964 sqrt(0.016 + 3.841459/400)) / 1.3841459
    # = (0.992073 ± 0.313617) / 1.3841459
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    # z at 68.2689% is 1: (0.5 + 1/8 ± sqrt(0.25/4 + 1/64)) / 1.25 = (0.625 ± 0.279508) / 1.25
    assert wilson_interval(2, 4, confidence=0.6826895) == pytest.approx((0.276393, 0.723607), abs=1e-6)


def test_wilson_interval_at_the_ends() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    # 0 of 10: the upper end is (z²/10) / (1 + z²/10) = 0.3841459 / 1.3841459
    low, high = wilson_interval(0, 10)
    assert low == 0.0
    assert high == pytest.approx(0.277533, abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((1 - 0.277533, 1.0), abs=1e-6)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 95)])
def test_wilson_interval_refuses_impossible_counts(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ConfigError):
        wilson_interval(successes, n, confidence)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == 0.5  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)  # 1 - C(3,3)/C(5,3) = 1 - 1/10
    assert pass_at_k(3, 2, 2) == 1.0  # one wrong sample cannot fill two places
    assert pass_at_k(7, 0, 7) == 0.0
    assert pass_at_k(32, 8, 1) == 0.25


@pytest.mark.parametrize(("n", "c", "k"), list(itertools.product([6], range(7), [1, 2, 5, 6])))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n: int, c: int, k: int) -> None:
    outcomes = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_refuses_more_draws_than_samples() -> None:
    with pytest.raises(ConfigError, match="sample at least k"):
        pass_at_k(4, 1, 5)


def test_repetitive_action_ratio_under_its_three_rules() -> None:
    actions = ["look", "go", "look", "look", "go"]
    observations = ["room", "door", "desk", "desk", "door"]
    # Steps 3, 4 and 5 were played before; only 4 follows itself; (desk, look) and (door, go) come twice.
    assert repetitive_action_ratio(actions) == 3 / 5
    assert repetitive_action_ratio(actions, rule="consecutive") == 1 / 5
    assert repetitive_action_ratio(actions, observations, rule="same_observation") == 2 / 5
    assert repetitive_action_ratio(["look"]) == 0.0
    assert math.isnan(repetitive_action_ratio([]))


def test_repetitive_action_ratio_refuses_what_it_cannot_count() -> None:
    with pytest.raises(ConfigError, match="one observation per action"):
        repetitive_action_ratio(["look", "go"], ["room"], rule="same_observation")
    with pytest.raises(ConfigError, match="known: earlier, consecutive"):
        repetitive_action_ratio(["look"], rule="twice")  # type: ignore[arg-type]


def test_explore_ratio() -> None:
    assert explore_ratio([True, False, False, True, False]) == 0.4
    assert math.isnan(explore_ratio([]))


def test_tag_rate_by_interval_counts_steps_over_all_episodes() -> None:
    episodes = [
        [True, False, False, True, True],  # interval 1-2: 1 of 2, 3-4: 1 of 2, 5-5: 1 of 1
        [True],  # interval 1-2: 1 of 1
        [True, True, False, False, False, True],  # 2 of 2, 0 of 2, 0 of 1; step 6 is beyond max_steps
    ]
    rows = tag_rate_by_interval(episodes, width=2, max_steps=5)
    assert rows == [(1, 2, 4 / 5, 5), (3, 4, 1 / 4, 4), (5, 5, 1 / 2, 2)]


def test_tag_rate_of_an_interval_that_nobody_reached_is_nan() -> None:
    rows = tag_rate_by_interval([[True, False]], width=5, max_steps=30)
    assert [row[:2] for row in rows] == [row[:2] for row in SPARK_T9]
    assert rows[0][2:] == (0.5, 2)
    assert all(math.isnan(rate) and n == 0 for _, _, rate, n in rows[1:])


def test_entropy_of_counts_by_hand() -> None:
    assert entropy_of_counts([5, 5]) == pytest.approx(math.log(2))
    # shares 1/2, 1/4, 1/4: 0.5 ln 2 + 2 * 0.25 ln 4 = 1.5 ln 2; the unused option adds nothing
    assert entropy_of_counts([2, 1, 0, 1]) == pytest.approx(1.5 * math.log(2))
    assert str(entropy_of_counts([7, 0])) == "0.0"
    assert math.isnan(entropy_of_counts([0, 0]))
    with pytest.raises(ConfigError, match="must not be negative"):
        entropy_of_counts([1, -1])


def test_coverage_counts_used_options() -> None:
    assert coverage([3, 0, 1, 0, 0, 0, 0, 1]) == 3 / 8
    assert math.isnan(coverage([]))


def test_dead_group_share() -> None:
    groups = {"mixed": [0.0, 1.0, 1.0], "all lost": [0.0, 0.0], "all won": [1.0, 1.0], "single": [1.0], "none": []}
    assert dead_group_share(groups) == 4 / 5
    assert math.isnan(dead_group_share({}))


def test_bootstrap_of_two_values_has_three_means() -> None:
    # Resampled means of {0, 1}: 0, 1/2, 1 with probability 1/4, 1/2, 1/4. The 2.5% and 97.5% quantiles are the
    # ends; those at 30% and 70% both fall on 1/2.
    assert bootstrap_interval([0.0, 1.0], seed=1) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], seed=1, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_agrees_with_the_normal_interval_and_with_itself() -> None:
    values = [0.0, 1.0] * 200
    # Standard error sqrt(0.25 / 400) = 0.025; 1.96 of it = 0.049. 400 values need 4 blocks of resamples.
    low, high = bootstrap_interval(values, seed=3)
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.003)
    assert bootstrap_interval(values, seed=3) == (low, high)
    assert bootstrap_interval([0.3], seed=0) == (0.3, 0.3)
    assert all(map(math.isnan, bootstrap_interval([], seed=0)))


def test_bootstrap_takes_another_statistic() -> None:
    # The maximum of three draws from {1, 5, 9} is 1 with probability 1/27 = 3.7% > 2.5%, and 9 with 19/27.
    assert bootstrap_interval([1.0, 5.0, 9.0], seed=0, statistic=np.max) == (1.0, 9.0)


def test_paired_difference_uses_the_pairs() -> None:
    second = [0.0, 0.25, 0.5, 1.0]
    first = [value + 0.125 for value in second]
    assert paired_difference_interval(first, second, seed=0) == (0.125, 0.125)
    # Differences 1 and -1: means -1, 0, 1.
    assert paired_difference_interval([1.0, 0.0], [0.0, 1.0], seed=0) == (-1.0, 1.0)
    with pytest.raises(ConfigError, match="wanted pairs, got 2 and 1"):
        paired_difference_interval([1.0, 0.0], [1.0], seed=0)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    # 1: tan(0.95 π/2); 2: 0.95 sqrt(2 / (1 - 0.95²)); the others from the printed tables of Student's t.
    [(1, math.tan(0.475 * math.pi)), (2, 0.95 * math.sqrt(2 / 0.0975)), (3, 3.182446), (4, 2.776445), (9, 2.262157)],
)
def test_t_quantile(degrees: int, expected: float) -> None:
    assert t_quantile(0.95, degrees) == pytest.approx(expected, abs=1e-6)


def test_t_quantile_approaches_the_normal_quantile() -> None:
    # Cornish-Fisher: z + (z³ + z) / (4 * 2000) = 1.959964 + (7.529162 + 1.959964) / 8000
    assert t_quantile(0.95, 2000) == pytest.approx(1.961150, abs=1e-5)


def test_t_interval_of_five_seeds_by_hand() -> None:
    # mean 0.7; s² = (0.04 + 0.01 + 0 + 0.01 + 0.04) / 4 = 0.025; s/√5 = 0.0707107; times 2.776445 = 0.196324
    assert t_interval([0.5, 0.6, 0.7, 0.8, 0.9]) == pytest.approx((0.503676, 0.896324), abs=1e-6)
    assert t_interval([0.5]) == (-math.inf, math.inf)
    assert all(map(math.isnan, t_interval([])))


def record(task_id: str, **changes: object) -> EpisodeRecord:
    fields: dict[str, object] = {
        "task_id": task_id,
        "kind": "heat",
        "split": "test",
        "success": False,
        "score": 0.0,
        "steps": 2,
        "generated_tokens": 20,
        "invalid_actions": 0,
        "actions": ("look", "go"),
        "explore_flags": (True, False),
        "status": "finished",
    }
    return EpisodeRecord(**(fields | changes))  # type: ignore[arg-type]


def test_success_table_by_hand() -> None:
    rows = success_table(
        [
            record("a", success=True, score=1.0),
            record(
                "b",
                score=0.25,
                steps=4,
                generated_tokens=60,
                invalid_actions=3,
                actions=("go", "go", "look", "go"),
                explore_flags=(False, False, False, True),
                status="truncated",
            ),
            record("c", status="failed", success=True, score=1.0, invalid_actions=2),
            record("d", kind="clean", success=True, score=1.0, explore_flags=()),
            record("e", split="dev", status="failed"),
        ]
    )
    assert [(row.split, row.kind, row.n, row.failed) for row in rows] == [
        ("dev", "heat", 0, 1),
        ("dev", ALL_KINDS, 0, 1),
        ("test", "clean", 1, 0),
        ("test", "heat", 2, 1),
        ("test", ALL_KINDS, 3, 1),
    ]
    heat = rows[3]
    assert heat.success == 1 / 2  # the failed episode's success does not count
    assert (heat.low, heat.high) == wilson_interval(1, 2)
    assert heat.score == 0.625  # (1 + 0.25) / 2
    assert (heat.steps, heat.tokens) == (3.0, 40.0)  # (2 + 4) / 2 and (20 + 60) / 2
    assert heat.invalid == 3 / 6
    assert heat.repetition == 2 / 6  # none of a's 2 steps, the second and third "go" of b's 4
    assert heat.explore_ratio == 2 / 6
    everything = rows[4]
    assert everything.success == 2 / 3
    assert everything.invalid == 3 / 8
    assert everything.explore_ratio == 2 / 6  # d has no flags: its steps are not counted as plain ones
    assert math.isnan(rows[0].success)
    assert (rows[0].low, rows[0].high) == (0.0, 1.0)
    as_json = rows[0].as_json()
    assert (as_json["split"], as_json["n"], as_json["success"], as_json["high"]) == ("dev", 0, None, 1.0)


def test_success_table_of_nothing_is_empty() -> None:
    assert success_table([]) == []


def test_success_table_under_another_repetition_rule() -> None:
    episode = record("a", actions=("go", "go"), observations=("hall", "kitchen"))
    assert success_table([episode])[0].repetition == 1 / 2
    assert success_table([episode], repetition_rule="same_observation")[0].repetition == 0.0
    with pytest.raises(ConfigError, match="same_observation"):
        success_table([record("a")], repetition_rule="same_observation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "lost"}, "status is 'lost', wanted one of finished, truncated, failed"),
        ({"actions": ("look",)}, "1 actions for 2 steps"),
        ({"explore_flags": (True,)}, "1 explore_flags for 2 steps"),
        ({"observations": ("room",)}, "1 observations for 2 steps"),
    ],
)
def test_episode_record_refuses_what_does_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        record("a", **changes)
