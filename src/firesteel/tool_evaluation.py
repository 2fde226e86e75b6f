"""What tool use looked like in played episodes: accuracy, entropy of the choice, coverage, overall and by category."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from firesteel.environments.question_rows import ANSWER, parse_action
from firesteel.metrics import EpisodeRecord, wilson_interval
from firesteel.tool_metrics import selection_entropy, tool_coverage
from firesteel.tools import COT

BOOTSTRAP_SAMPLES = 500


def chosen_actions(records: Sequence[EpisodeRecord], known: Sequence[str]) -> list[list[str]]:
    """The tools and `cot` that each episode called, in order; answers and what was not understood do not count."""
    names = {*known, COT} - {ANSWER}
    return [[name for action in each.actions if (name := parse_action(action)[0]) in names] for each in records]


def call_outcomes(records: Sequence[EpisodeRecord], known: Sequence[str]) -> dict[str, tuple[int, int]]:
    """For each tool how many of its calls worked, and of how many that is known: a failure says "error:".

    What the last call of an episode yielded was never shown to the policy, and is no part of its record.
    """
    found = {name: (0, 0) for name in sorted(known)}
    for record in records:
        for action, seen in zip(record.actions, record.observations[1:], strict=False):
            name = parse_action(action)[0]
            if name in found:
                worked, of = found[name]
                found[name] = worked + (not seen.startswith("error:")), of + 1
    return found


def tool_report(records: Sequence[EpisodeRecord], known: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Figures of some episodes: `n`, accuracy with its Wilson interval; of the calls entropy (nats), coverage, rates.

    `ok` is the share of calls of tools that worked, `ok/TOOL` that of one. The interval of the entropy is the 95%
    bootstrap interval over episodes. None stands for a NaN.
    """
    calls = chosen_actions(records, known)
    flat = [name for each in calls for name in each]
    won = sum(record.success for record in records)
    low, high = wilson_interval(won, len(records))
    rng = random.Random(seed)
    drawn = []
    for _ in range(BOOTSTRAP_SAMPLES if flat else 0):
        sample = [name for each in rng.choices(calls, k=len(calls)) for name in each]
        drawn.append(selection_entropy(sample) if sample else 0.0)
    drawn.sort()
    figures: dict[str, Any] = {
        "n": len(records), "accuracy": won / len(records) if records else math.nan, "low": low, "high": high,
        "entropy": selection_entropy(flat),
        "entropy_low": drawn[int(0.025 * len(drawn))] if drawn else math.nan,
        "entropy_high": drawn[int(0.975 * len(drawn))] if drawn else math.nan,
        "coverage": tool_coverage(flat, sorted({*known, COT})),
        "calls": len(flat) / len(records) if records else math.nan,
    }  # fmt: skip
    figures |= {f"rate/{name}": flat.count(name) / len(flat) if flat else math.nan for name in sorted({*known, COT})}
    outcomes = call_outcomes(records, known)
    figures["ok"] = _share(sum(worked for worked, _ in outcomes.values()), sum(of for _, of in outcomes.values()))
    figures |= {f"ok/{name}": _share(*each) for name, each in outcomes.items()}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in figures.items()}


def entropy_of_kinds(records: Sequence[EpisodeRecord], known: Sequence[str]) -> dict[str, float | None]:
    """The entropy of tool choices in each category, where there are several; None where nothing was called."""
    found: dict[str, list[str]] = {}
    for record, calls in zip(records, chosen_actions(records, known), strict=True):
        found.setdefault(record.kind, []).extend(calls)
    if len(found) < 2:
        return {}
    return {kind: selection_entropy(calls) if calls else None for kind, calls in sorted(found.items())}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def report_by_category(records: Sequence[EpisodeRecord], known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`tool_report` of each category, and of "all"."""
    kinds = sorted({record.kind for record in records})
    found = {kind: tool_report([record for record in records if record.kind == kind], known) for kind in kinds}
    return found | {"all": tool_report(records, known)}
