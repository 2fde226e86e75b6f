"""BFCL's figures from counts by category: `non_live_ast`, `live_ast`, `overall_ast`, `multi_turn`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from firesteel.environments.bfcl.package import GROUPS, MULTI_TURN
from firesteel.metrics import EpisodeRecord

Counts = Mapping[str, tuple[int, int]]
"""(correct, total) by category."""

_SIMPLE = ("simple_python", "simple_java", "simple_javascript")


def bfcl_counts(records: Iterable[EpisodeRecord]) -> dict[str, tuple[int, int]]:
    """(correct, total) by category of played episodes, which may come from several splits.

    An episode that failed (the backends died) counts as wrong: in BFCL nothing is left out.
    """
    counts: dict[str, tuple[int, int]] = {}
    for record in records:
        correct, total = counts.get(record.kind, (0, 0))
        is_correct = record.success and record.status != "failed"
        counts[record.kind] = (correct + is_correct, total + 1)
    return counts


def bfcl_summary(counts: Counts) -> dict[str, float | None]:
    """BFCL v4's figures, each None where a category of it was not played (or has no task).

    `non_live_ast`: the mean of simple (itself the mean of Python, Java and JavaScript), multiple, parallel and
    parallel_multiple. `live_ast`: correct / total over the live categories with calls. `overall_ast`: correct / total
    over both. `multi_turn`: the mean of the four categories. Then every category's own accuracy.

    Differs from BFCL: its "Overall" needs the web and a memory, and is not given.
    """
    own = {name: correct / total for name, (correct, total) in counts.items() if total}
    simple = _mean([own.get(name) for name in _SIMPLE])
    summary: dict[str, float | None] = {
        "non_live_ast": _mean([simple, *(own.get(name) for name in ("multiple", "parallel", "parallel_multiple"))]),
        "live_ast": _pooled(counts, GROUPS["live"]),
        "overall_ast": _pooled(counts, (*GROUPS["non_live"], *GROUPS["live"])),
        "multi_turn": _mean([own.get(name) for name in MULTI_TURN]),
    }
    return summary | own


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _pooled(counts: Counts, names: Sequence[str]) -> float | None:
    if any(counts.get(name, (0, 0))[1] == 0 for name in names):
        return None
    return sum(counts[name][0] for name in names) / sum(counts[name][1] for name in names)
