"""Probes: waves by hand, what they cost, and the same through a grower."""

from __future__ import annotations

import random

import pytest
from tool_trees import Table, sample

from firesteel.errors import ConfigError
from firesteel.probing import WAVES, Probe, Rollout, expected_rollouts, probe, probe_in_chunks, waves_of


def test_waves_double_every_second_time_and_add_up():
    assert waves_of(10) == WAVES == (1, 1, 2, 2, 4)
    assert waves_of(32) == (1, 1, 2, 2, 4, 4, 8, 8, 2)
    assert [waves_of(count) for count in (1, 2, 3, 5)] == [(1,), (1, 1), (1, 1, 1), (1, 1, 2, 1)]


def test_a_probe_by_hand():
    # "early" succeeds at its first rollout, "third" at its third (the first of wave 2), "never" does not
    first = {"early": 0, "third": 2, "never": 99}
    table = Table(lambda task, rollout: rollout == first[task.id])
    results = probe([sample(name, "f") for name in first], table, "p")
    assert results == [
        Probe(True, rollouts=1, tokens=10, sequential_tokens=10),
        Probe(True, rollouts=4, tokens=40, sequential_tokens=30),
        Probe(False, rollouts=10, tokens=100, sequential_tokens=100),
    ]
    assert table.calls == [
        ("p/wave-0", 1, ["early", "third", "never"]),
        ("p/wave-1", 1, ["third", "never"]),
        ("p/wave-2", 2, ["third", "never"]),
        ("p/wave-3", 2, ["never"]),
        ("p/wave-4", 4, ["never"]),
    ]


def test_a_probe_stops_when_everything_is_solved():
    table = Table(lambda task, rollout: True)
    probe([sample("a", "f")], table, "p")
    assert len(table.calls) == 1


def test_the_cost_by_hand():
    # p = 1/2: 1 + 1/2 + 2/4 + 2/16 + 4/64 = 2.1875, sequential (1 - 2^-10) / (1/2)
    assert expected_rollouts(0.5) == pytest.approx((2.1875, 2 * (1 - 2**-10)))
    assert expected_rollouts(0.0) == (10.0, 10)
    assert expected_rollouts(1.0) == (1.0, 1.0)


def test_waves_cost_at_most_1_13_times_a_sequential_prober_whatever_the_policy():
    ratios = [waves / alone for waves, alone in (expected_rollouts(p / 1000) for p in range(1001))]
    assert 1.12 < max(ratios) < 1.13
    assert max(w / s for w, s in (expected_rollouts(p / 1000, (10,)) for p in range(1001))) == 10.0


class Drawn:
    """Rollouts that succeed by chance, and are `lengths[success]` tokens long."""

    def __init__(self, p: float, lengths: tuple[int, int]) -> None:
        self.rng, self.p, self.lengths = random.Random(f"{p}/{lengths}"), p, lengths

    def __call__(self, tasks, rollouts: int, name: str) -> list[list[Rollout]]:
        return [[self.rollout() for _ in range(rollouts)] for _ in tasks]

    def rollout(self) -> Rollout:
        success = self.rng.random() < self.p
        return Rollout(success, self.lengths[success])


@pytest.mark.parametrize("rollouts", [10, 32])
@pytest.mark.parametrize("p", [0.05, 0.15, 0.3, 0.5, 0.8])
def test_tokens_of_a_probe_are_within_1_3_of_a_sequential_probers(p: float, rollouts: int):
    waves, one_by_one = waves_of(rollouts), (1,) * rollouts
    expected, alone = expected_rollouts(p, waves)
    for lengths in ((100, 100), (300, 20), (20, 300)):
        play, tasks = Drawn(p, lengths), [sample("a", "f")] * 2000
        sequential = sum(result.tokens for result in probe(tasks, play, "s", waves=one_by_one))
        batched = sum(result.tokens for result in probe(tasks, play, "w", waves=waves))
        at_once = sum(result.tokens for result in probe(tasks, play, "o", waves=(rollouts,)))
        assert 1.0 < batched / sequential <= 1.3
        assert batched / sequential == pytest.approx(expected / alone, rel=0.08)
        assert at_once / sequential > batched / sequential + 0.1  # what waves are for


def test_chunks_cover_a_data_set_in_order():
    table = Table(lambda task, rollout: int(task.id) % 2 == 0)
    tasks = [sample(str(number), "f") for number in range(5)]
    chunks = list(probe_in_chunks(tasks, table, "p", chunk=2))
    assert [places for places, _ in chunks] == [range(0, 2), range(2, 4), range(4, 5)]
    assert [result.solved for _, results in chunks for result in results] == [True, False, True, False, True]
    assert max(len(ids) for _, _, ids in table.calls) == 2


def test_waves_must_be_positive():
    with pytest.raises(ConfigError, match="waves must be positive"):
        probe([], lambda tasks, rollouts, name: [[Rollout(True, 1)]], "p", waves=(1, 0))
