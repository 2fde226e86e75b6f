"""Which rows of a batch attend to which prefix together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from firesteel.generators.attention import SharedPrefix
from firesteel.generators.kv import KVBuffer, KVShape
from firesteel.generators.segments import Segment

MIN_GAIN_TOKENS = 1024
"""A group is made where it reads so many tokens less: a product of its own and the merge are not free."""


def shared_prefixes(contexts: Sequence[Segment | None], known: Collection[Segment] = ()) -> list[Segment | None]:
    """For each row the segment up to which its context is attended to as a group; None where alone is better.

    Of a segment with k rows below it the keys and values are read k - 1 times less. Segments form trees: a segment and
    those behind it are alternatives for its rows, and the better one is taken.

    Args:
        contexts: The last segment of each row's context.
        known: Segments that other rows of the batch attend to as a group already; joining them costs nothing.
    """
    rows: dict[Segment, list[int]] = defaultdict(list)
    for row, last in enumerate(contexts):
        for segment in last.chain() if last is not None else ():
            rows[segment].append(row)
    chosen: list[Segment | None] = [None] * len(contexts)
    gains: dict[Segment, int] = defaultdict(int)
    # What lies behind a segment ends after it, so that its gain is known before.
    for segment in sorted(rows, key=lambda each: -each.end):
        cost = 0 if segment in known else segment.end + MIN_GAIN_TOKENS
        gain = len(rows[segment]) * segment.end - cost
        if gain > gains[segment]:
            gains[segment] = gain
            for row in rows[segment]:
                chosen[row] = segment
        if segment.parent is not None:
            gains[segment.parent] += gains[segment]
    return chosen


class Groups:
    """The rows of a batch by the prefix that they share; keeps the prefix's keys and values in one piece."""

    def __init__(self, shape: KVShape, rows: Sequence[Segment | None], known: Mapping[Segment, KVBuffer]) -> None:
        members: dict[Segment, list[int]] = {}
        for row, prefix in enumerate(rows):
            if prefix is not None:
                members.setdefault(prefix, []).append(row)
        self.stored = {prefix: known.get(prefix) or _in_one_piece(prefix, shape) for prefix in members}
        self.prefixes = [SharedPrefix.of(self.stored[prefix], places) for prefix, places in members.items()]


def _in_one_piece(prefix: Segment, shape: KVShape) -> KVBuffer:
    """A context's keys and values: its only segment's own, or a copy of several."""
    if prefix.parent is None and prefix.stored is not None:
        return prefix.stored
    buffer = KVBuffer.empty(shape, 1, prefix.end)
    prefix.copy_to(buffer, 0)
    return buffer
