"""What tool use looked like: entropy of the choice, coverage, rates, success. Pure functions on trajectory rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firesteel.metrics import coverage, entropy_of_counts, wilson_interval

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How one action was used: `rate` is its share of all steps, `ok_rate` the share of its calls that worked."""

    action: str
    calls: int
    rate: float
    ok_rate: float
    process_ok_rate: float
    mean_score: float


def selection_entropy(actions: Iterable[str]) -> float:
    """The entropy in nats of which action was chosen, in [0, ln(number of actions)]; NaN for no step."""
    counts = list(Counter(actions).values())
    return entropy_of_counts(counts) if counts else math.nan


def normalised_entropy(actions: Iterable[str], num_actions: int) -> float:
    """`selection_entropy` as a share of its maximum ln(num_actions), in [0, 1]; NaN for fewer than two actions."""
    return selection_entropy(actions) / math.log(num_actions) if num_actions > 1 else math.nan


def tool_coverage(actions: Iterable[str], known: Sequence[str]) -> float:
    """The share of the known actions that were chosen at least once; NaN for none known."""
    counts = Counter(actions)
    return coverage([counts[name] for name in known])


def entropy_by_category(rows: Iterable[Row]) -> dict[str, float]:
    """The selection entropy of each category's steps."""
    chosen: dict[str, list[str]] = {}
    for row in rows:
        chosen.setdefault(row["category"], []).append(row["tool_name"])
    return {category: selection_entropy(actions) for category, actions in sorted(chosen.items())}


def tool_use(rows: Sequence[Row]) -> list[ToolUse]:
    """One line for each candidate action, sorted by name; rates of an action that was never called are NaN."""
    actions = sorted({action for row in rows for action in row["candidate_actions"]})
    return [_use(action, [row for row in rows if row["tool_name"] == action], rows) for action in actions]


def _use(action: str, calls: Sequence[Row], rows: Sequence[Row]) -> ToolUse:
    scores = [row["scores"][action] for row in rows if row["scores"].get(action) is not None]
    return ToolUse(
        action=action,
        calls=len(calls),
        rate=_share(len(calls), len(rows)),
        ok_rate=_share(sum(bool(row["tool_ok"]) for row in calls), len(calls)),
        process_ok_rate=_share(sum(bool(row["process_ok"]) for row in calls), len(calls)),
        mean_score=_share(math.fsum(scores), len(scores)),
    )


def accuracy_by_category(trajectories: Iterable[Sequence[Row]]) -> dict[str, tuple[int, float, float, float]]:
    """For each category, and "all": the number of trajectories, the share of right answers, and its Wilson interval."""
    outcomes: dict[str, list[bool]] = {}
    for rows in trajectories:
        for name in (rows[0]["category"], "all"):
            outcomes.setdefault(name, []).append(bool(rows[0]["is_correct"]))
    return {name: _accuracy(won) for name, won in sorted(outcomes.items())}


def _accuracy(won: Sequence[bool]) -> tuple[int, float, float, float]:
    return len(won), _share(sum(won), len(won)), *wilson_interval(sum(won), len(won))


def tool_summary(rows: Sequence[Row]) -> dict[str, float | None]:
    """The figures that a run logs, under stable names; None where a number is NaN."""
    chosen = [row["tool_name"] for row in rows]
    known = sorted({action for row in rows for action in row["candidate_actions"]})
    figures = {
        "explore/tool_entropy": selection_entropy(chosen),
        "explore/tool_coverage": tool_coverage(chosen, known),
        "explore/fallback_rate": _share(sum(bool(row["is_fallback"]) for row in rows), len(rows)),
        "tools/ok": _share(sum(bool(row["tool_ok"]) for row in rows), len(rows)),
        "tools/process_ok": _share(sum(bool(row["process_ok"]) for row in rows), len(rows)),
        "tools/score_gap": _share(math.fsum(row["best_score"] - row["chosen_score"] for row in rows), len(rows)),
    }
    figures |= {f"tools/rate/{name}": _share(chosen.count(name), len(chosen)) for name in known}
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
