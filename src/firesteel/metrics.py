"""What reports count: rates with intervals, exploration measures, and the table of a set of episodes.

Pure functions on numbers. Where there is nothing to count (no episode, no step) a rate is NaN, never 0;
an interval of which nothing is known is the widest one there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

import numpy as np

from firesteel.errors import ConfigError

EpisodeStatus = Literal["finished", "truncated", "failed"]
STATUSES: tuple[EpisodeStatus, ...] = ("finished", "truncated", "failed")
ALL_KINDS = "all"
RepetitionRule = Literal["earlier", "consecutive", "same_observation"]
REPETITION_RULES: tuple[RepetitionRule, ...] = ("earlier", "consecutive", "same_observation")

# Table 9 of SPARK, ALFWorld cold-start data: (first step, last step, share of steps tagged `<explore>`).
SPARK_T9: tuple[tuple[int, int, float], ...] = (
    (1, 5, 0.2297),
    (6, 10, 0.1043),
    (11, 15, 0.1420),
    (16, 20, 0.0769),
    (21, 25, 0.0357),
    (26, 30, 0.0),
)

Statistic = Callable[..., np.ndarray]


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must lie strictly between 0 and 1, got {confidence}; 0.95 is usual")


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval (low, high) of a success rate, inside [0, 1].

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = successes / n and z the two-sided normal
    quantile. With n = 0 nothing is known: (0, 1). Never of width 0, also not for 0 or n successes.
    """
    _check_confidence(confidence)
    if not 0 <= successes <= n:
        raise ConfigError(f"wilson_interval: successes must lie in 0..n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    half_width = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n successes the exact bound is 0 or 1; rounding would leave ±1e-17.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == n else (centre + half_width) / scale
    return low, high


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased chance that at least one of k samples is correct, when c of n samples were.

    1 - C(n-c, k) / C(n, k), in exact integers before the one division. 1.0 where n - c < k.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ConfigError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}; sample at least k")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _repeated_steps(actions: Sequence[str], observations: Sequence[str] | None, rule: RepetitionRule) -> int:
    """The number of steps that count as repeated under `rule`."""
    if rule == "consecutive":
        return sum(later == earlier for earlier, later in pairwise(actions))
    if rule == "earlier":
        return len(actions) - len(set(actions))
    if rule == "same_observation":
        if observations is None or len(observations) != len(actions):
            got = "none" if observations is None else str(len(observations))
            raise ConfigError(
                f"repetition rule 'same_observation': wanted one observation per action ({len(actions)}), got {got}; "
                "pass the observation before each action or use the rule 'earlier'"
            )
        return len(actions) - len(set(zip(observations, actions, strict=True)))
    raise ConfigError(f"unknown repetition rule '{rule}'; known: {', '.join(REPETITION_RULES)}")


def repetitive_action_ratio(
    actions: Sequence[str], observations: Sequence[str] | None = None, rule: RepetitionRule = "earlier"
) -> float:
    """The share of an episode's steps that repeat, in [0, 1]; NaN for no steps.

    SPARK reports such a ratio (its Table 6) and does not state the formula; three readings have a name:

    - "earlier" (default): the same action was already played earlier in the episode. Needs actions only, and
      counts also the legitimate second visit to a place.
    - "consecutive": the same action as the step before. Blind to a policy that alternates between two actions.
    - "same_observation": the same action was already played on the same observation (`observations[i]` is what
      was seen before `actions[i]`): nothing new can come of it in a deterministic environment. The strictest.
    """
    repeated = _repeated_steps(actions, observations, rule)
    return repeated / len(actions) if actions else math.nan


def explore_ratio(tags: Sequence[bool]) -> float:
    """The share of steps tagged as exploring (Table 7 of SPARK), in [0, 1]; NaN for no steps."""
    return sum(map(bool, tags)) / len(tags) if tags else math.nan


def tag_rate_by_interval(
    episodes_of_flags: Iterable[Sequence[bool]], width: int = 5, max_steps: int = 30
) -> list[tuple[int, int, float, int]]:
    """The share of tagged steps per interval of step numbers: rows (first, last, rate, n), as in Table 9 of SPARK.

    Steps count from 1, both ends belong to the interval, `n` is the number of steps counted over all episodes, and
    the rate of an interval that no episode reached is NaN. Steps after `max_steps` are left out.
    """
    if width < 1 or max_steps < 1:
        raise ConfigError(f"tag_rate_by_interval: width and max_steps must be at least 1, got {width} and {max_steps}")
    num_intervals = math.ceil(max_steps / width)
    tagged, counted = [0] * num_intervals, [0] * num_intervals
    for flags in episodes_of_flags:
        for index, flag in enumerate(flags[:max_steps]):
            tagged[index // width] += bool(flag)
            counted[index // width] += 1
    return [
        (i * width + 1, min((i + 1) * width, max_steps), tagged[i] / counted[i] if counted[i] else math.nan, counted[i])
        for i in range(num_intervals)
    ]


def entropy_of_counts(counts: Sequence[float]) -> float:
    """The entropy in nats of the shares of `counts`, -Σ p ln p, in [0, ln(len(counts))]; NaN if all are 0."""
    array = np.asarray(counts, dtype=float)
    if (array < 0).any():
        raise ConfigError(f"entropy_of_counts: counts must not be negative, got {array.min()}")
    total = array.sum()
    if total == 0:
        return math.nan
    shares = array[array > 0] / total
    # max() turns the -0.0 of a single option into 0.0.
    return max(0.0, float(-(shares * np.log(shares)).sum()))


def coverage(counts: Sequence[float]) -> float:
    """The share of options that were used at least once, in [0, 1]; one count per option, NaN for no option."""
    return sum(count > 0 for count in counts) / len(counts) if len(counts) else math.nan


def dead_group_share(rewards_by_group: Mapping[str, Sequence[float]]) -> float:
    """The share of groups whose rewards are all equal and so give no gradient, in [0, 1]; NaN for no group.

    A group of one or of none is dead, too.
    """
    if not rewards_by_group:
        return math.nan
    return sum(len(set(rewards)) <= 1 for rewards in rewards_by_group.values()) / len(rewards_by_group)


def bootstrap_interval(
    values: Sequence[float],
    seed: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    statistic: Statistic = np.mean,
) -> tuple[float, float]:
    """The percentile bootstrap interval (low, high) of a statistic of independent values, by default their mean.

    `statistic(matrix, axis=1)` maps (resamples, values) to (resamples,). The same seed gives the same interval.
    No value: (NaN, NaN). One value: an interval of width 0, which claims too much; use at least five.
    """
    _check_confidence(confidence)
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    # In blocks, so that memory stays at about 8 MB for any number of values.
    block = max(1, 1_000_000 // array.size)
    sizes = [min(block, num_resamples - start) for start in range(0, num_resamples, block)]
    resampled = [statistic(array[rng.integers(0, array.size, (size, array.size))], axis=1) for size in sizes]
    low, high = np.quantile(np.concatenate(resampled), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_difference_interval(
    first: Sequence[float],
    second: Sequence[float],
    seed: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> tuple[float, float]:
    """The bootstrap interval (low, high) of mean(first - second), resampling pairs.

    `first[i]` and `second[i]` belong together (the same task and seed under two policies). An interval that holds
    0 shows no difference.
    """
    if len(first) != len(second):
        raise ConfigError(f"paired_difference_interval: wanted pairs, got {len(first)} and {len(second)} values")
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    return bootstrap_interval(differences.tolist(), seed, confidence=confidence, num_resamples=num_resamples)


def _central_t_mass(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)) of Student's t (Abramowitz & Stegun 26.7.3 and 26.7.4, exact finite sums)."""
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(2 + odd, degrees + 1, 2):
        total += term
        term *= (power - 1) / power * cosine * cosine
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def t_quantile(confidence: float, degrees: int) -> float:
    """The t for which P(|T| <= t) = confidence under Student's t with `degrees` >= 1 degrees of freedom."""
    _check_confidence(confidence)
    if degrees < 1:
        raise ConfigError(f"t_quantile: degrees must be at least 1, got {degrees}")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _central_t_mass(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval (low, high) of the mean of a few independent values, one per seed.

    mean ± t · s / sqrt(n), with s the sample standard deviation (n - 1). One value says nothing about the spread:
    (-inf, inf). No value: (NaN, NaN).
    """
    _check_confidence(confidence)
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    if n == 1:
        return -math.inf, math.inf
    mean = float(np.mean(values))
    half_width = t_quantile(confidence, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half_width, mean + half_width


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """What reports need to know of one finished episode.

    `score` lies in [0, 1]. `status` is "finished" (the environment ended it), "truncated" (a limit did) or
    "failed" (the environment died or hung: no fault of the policy). One entry of `actions` per step;
    `explore_flags` and `observations` (what was seen before each action) have one per step or none at all.
    """

    task_id: str
    kind: str
    split: str
    success: bool
    score: float
    steps: int
    generated_tokens: int
    invalid_actions: int
    actions: tuple[str, ...]
    explore_flags: tuple[bool, ...]
    status: EpisodeStatus
    observations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ConfigError(
                f"episode of task '{self.task_id}': status is '{self.status}', wanted one of {', '.join(STATUSES)}"
            )
        if len(self.actions) != self.steps:
            raise ConfigError(
                f"episode of task '{self.task_id}': {len(self.actions)} actions for {self.steps} steps; "
                "record one action per step, '' where none was understood"
            )
        for name in ("explore_flags", "observations"):
            if len(getattr(self, name)) not in (0, self.steps):
                raise ConfigError(
                    f"episode of task '{self.task_id}': {len(getattr(self, name))} {name} for {self.steps} steps; "
                    "wanted one per step, or none"
                )


@dataclass(frozen=True, slots=True)
class SuccessRow:
    """One line of a success table; `kind` is `ALL_KINDS` on the line that sums up a split.

    `n` episodes count, `failed` ones do not. `success` is their share with its Wilson interval `low`..`high`.
    `score`, `steps` and `tokens` (generated) are means per episode; `invalid`, `repetition` and `explore_ratio` are
    shares of all steps of the row, so that a long episode weighs as its steps do.
    """

    split: str
    kind: str
    n: int
    failed: int
    success: float
    low: float
    high: float
    score: float
    steps: float
    tokens: float
    invalid: float
    repetition: float
    explore_ratio: float

    def as_json(self) -> dict[str, str | float | None]:
        """The fields by name, with None where a number is NaN: JSON has no NaN."""
        fields = asdict(self).items()
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields}


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _success_row(
    split: str, kind: str, records: Sequence[EpisodeRecord], confidence: float, rule: RepetitionRule
) -> SuccessRow:
    counted = [record for record in records if record.status != "failed"]
    n, successes = len(counted), sum(record.success for record in counted)
    low, high = wilson_interval(successes, n, confidence)
    num_steps = sum(record.steps for record in counted)
    repeated = sum(_repeated_steps(record.actions, record.observations, rule) for record in counted)
    flags = [flag for record in counted for flag in record.explore_flags]
    return SuccessRow(
        split=split,
        kind=kind,
        n=n,
        failed=len(records) - n,
        success=_ratio(successes, n),
        low=low,
        high=high,
        score=_ratio(sum(record.score for record in counted), n),
        steps=_ratio(num_steps, n),
        tokens=_ratio(sum(record.generated_tokens for record in counted), n),
        invalid=_ratio(sum(record.invalid_actions for record in counted), num_steps),
        repetition=_ratio(repeated, num_steps),
        explore_ratio=explore_ratio(flags),
    )


def success_table(
    records: Iterable[EpisodeRecord], *, confidence: float = 0.95, repetition_rule: RepetitionRule = "earlier"
) -> list[SuccessRow]:
    """Success and behaviour by split and kind, sorted, each split closed by its `ALL_KINDS` row.

    Failed episodes stand in `failed` and nowhere else: read a success rate only beside that count.
    """
    cells: dict[str, dict[str, list[EpisodeRecord]]] = {}
    for record in records:
        cells.setdefault(record.split, {}).setdefault(record.kind, []).append(record)
    rows = []
    for split, by_kind in sorted(cells.items()):
        groups = [*sorted(by_kind.items()), (ALL_KINDS, [record for group in by_kind.values() for record in group])]
        rows += [_success_row(split, kind, group, confidence, repetition_rule) for kind, group in groups]
    return rows
