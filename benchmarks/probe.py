"""What probing in waves costs beside one rollout after the other; prints a JSON line for each rate of success.

`expected` is worked out (`expected_rollouts`). `measured` is the tokens of `probe` over those of the same probe in
waves of one rollout, which stops at the first success, for simulated tasks: a rollout succeeds with the given
probability, and one that fails is three times as long on average. Both kinds of probe draw rollouts of their own.

    python benchmarks/probe.py --tasks 20000
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence

from firesteel.probing import Probe, Rollout, expected_rollouts, probe, waves_of
from firesteel.types import Task

RATES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
PROBES = (10, 32)
MEAN_TOKENS = {True: 40, False: 120}
LIMIT = 1.3


class Simulated:
    """A `Play` of rollouts that succeed with probability `p`."""

    def __init__(self, p: float, seed: str) -> None:
        self._p = p
        self._rng = random.Random(seed)

    def __call__(self, tasks: Sequence[Task], rollouts: int, name: str) -> list[list[Rollout]]:
        del name
        return [[self._rollout() for _ in range(rollouts)] for _ in tasks]

    def _rollout(self) -> Rollout:
        success = self._rng.random() < self._p
        return Rollout(success, 1 + int(self._rng.expovariate(1 / MEAN_TOKENS[success])))


def spent(results: Sequence[Probe]) -> int:
    """The tokens of some probes."""
    return sum(result.tokens for result in results)


def measure(p: float, rollouts: int, num_tasks: int) -> dict[str, float]:
    """Tokens of waves over those of one rollout at a time, expected and measured."""
    waves, one_by_one = waves_of(rollouts), (1,) * rollouts
    tasks = [Task(str(number)) for number in range(num_tasks)]
    batched = probe(tasks, Simulated(p, f"waves/{p}/{rollouts}"), "waves", waves=waves)
    sequential = probe(tasks, Simulated(p, f"sequential/{p}/{rollouts}"), "sequential", waves=one_by_one)
    expected = expected_rollouts(p, waves)
    return {
        "rollouts": rollouts, "success_rate": p, "expected": round(expected[0] / expected[1], 4),
        "measured": round(spent(batched) / spent(sequential), 4),
    }  # fmt: skip


def main() -> None:
    """All rates; exits with 1 where a ratio is above `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20_000)
    num_tasks = parser.parse_args().tasks
    rows = [measure(p, rollouts, num_tasks) for rollouts in PROBES for p in RATES]
    for row in rows:
        print(json.dumps({"benchmark": "probe", **row}), flush=True)
    worst = max(max(row["expected"], row["measured"]) for row in rows)
    print(json.dumps({"benchmark": "probe", "worst": worst, "limit": LIMIT}))
    raise SystemExit(int(worst > LIMIT))


if __name__ == "__main__":
    main()
