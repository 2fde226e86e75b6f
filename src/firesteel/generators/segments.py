"""What is kept of contexts: segments of keys and values that form trees, as the contexts do.

A segment holds the keys and values of the tokens that it adds behind its parent, once, whoever continues it: branches
are two segments with one parent. `CachedContext` is a reference to the last segment of a context.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from firesteel.generators.kv import KVBuffer, KVShape

SHORT_TOKENS = 64
"""Segments up to this length become part of what follows them."""


class Segment:
    """Keys and values of consecutive tokens, [L, 1, H, T, D], from position `start` to before `end`; immutable.

    `stored` is None once the memory was taken back. `used` is when the segment was used last, in the store's time.
    """

    __slots__ = ("__weakref__", "end", "parent", "start", "stored", "token_ids", "used")

    def __init__(self, parent: Segment | None, token_ids: tuple[int, ...], stored: KVBuffer) -> None:
        self.parent = parent
        self.token_ids = token_ids
        self.start: int = parent.end if parent is not None else 0
        self.end: int = self.start + len(token_ids)
        self.stored: KVBuffer | None = stored
        self.used = 0

    def chain(self) -> list[Segment]:
        """The segments of the whole context, from its first token to the end of this one."""
        segments: list[Segment] = []
        segment: Segment | None = self
        while segment is not None:
            segments.append(segment)
            segment = segment.parent
        return segments[::-1]

    def copy_to(self, target: KVBuffer, first: int) -> None:
        """Writes the context's positions from `first` to `end` into the columns of one row."""
        assert target.num_columns == self.end - first
        segment: Segment | None = self
        while segment is not None and segment.end > first:
            assert segment.stored is not None
            begin = max(segment.start, first)
            keys, values = segment.stored.keys, segment.stored.values
            target.keys[:, :, :, begin - first : segment.end - first] = keys[:, :, :, begin - segment.start :]
            target.values[:, :, :, begin - first : segment.end - first] = values[:, :, :, begin - segment.start :]
            segment = segment.parent


def carve(parent: Segment | None, token_ids: tuple[int, ...], row: KVBuffer) -> Segment:
    """A new segment behind `parent`, with copies of the keys and values in the last columns of a row.

    Segments before it that are short become part of it if they are in the row, so that the context of many turns does
    not fall to pieces; a long one, which branches may share, stays what it is.
    """
    while parent is not None and len(parent.token_ids) <= max(len(token_ids), SHORT_TOKENS):
        if len(parent.token_ids) + len(token_ids) > row.num_columns:
            break
        token_ids, parent = (*parent.token_ids, *token_ids), parent.parent
    end = row.part(slice(None), slice(row.num_columns - len(token_ids), None))
    return Segment(parent, token_ids, KVBuffer(_copied(end.keys), _copied(end.values)))


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


class Store:
    """The segments of one generator and one policy version, and how much memory they take.

    A segment lives as long as something refers to it; the store itself does not keep it alive. What is evicted,
    least recently used first, is computed again when it is needed.

    Args:
        shape: Of the model's keys and values.

    Attributes:
        evicted_tokens: How many tokens' keys and values were dropped to make room.
    """

    def __init__(self, shape: KVShape) -> None:
        self._token_bytes = shape.token_bytes
        self._segments: weakref.WeakSet[Segment] = weakref.WeakSet()
        self._clock = 0
        self.evicted_tokens = 0

    def add(self, segment: Segment) -> None:
        """Counts a segment, as the one used last."""
        self._segments.add(segment)
        self._clock += 1
        segment.used = self._clock

    def touch(self, last: Segment | None) -> None:
        """Makes a context the most recently used one; its beginning may serve others, and counts as used after it."""
        segment = last
        while segment is not None:
            self._clock += 1
            segment.used = self._clock
            segment = segment.parent

    @property
    def num_bytes(self) -> int:
        """What the segments that are still referred to take."""
        return sum(len(each.token_ids) for each in self._segments if each.stored is not None) * self._token_bytes

    def make_room(self, limit: int, needed: Collection[Segment] = (), coming: int = 0) -> None:
        """Evicts until at most `limit` bytes are taken, or until only the contexts `needed` are left.

        `coming` is the number of tokens about to be kept, which are to fit as well.
        """
        excess = self.num_bytes + coming * self._token_bytes - limit
        if excess <= 0:
            return
        kept = {segment for last in needed for segment in last.chain()}
        for segment in sorted(self._segments, key=lambda each: each.used):
            if excess > 0 and segment.stored is not None and segment not in kept:
                segment.stored = None
                excess -= len(segment.token_ids) * self._token_bytes
                self.evicted_tokens += len(segment.token_ids)

    def end(self) -> None:
        """Frees every segment that is still referred to."""
        for segment in self._segments:
            segment.stored = None
        self._segments = weakref.WeakSet()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CachedContext:
    """A context whose keys and values are kept. Opaque to callers, immutable, and free to be shared by branches.

    The last token of a completion was sampled and never fed to the model, so it is not covered.
    """

    store: Store
    policy_version: int
    last: Segment

    def __repr__(self) -> str:
        return f"CachedContext({self.last.end} tokens, policy version {self.policy_version})"

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # A stored or copied completion does not carry device memory along: its cache becomes None.
        return (type(None), ())

    def covered(self, token_ids: tuple[int, ...], limit: int) -> tuple[Segment | None, int]:
        """The segment up to which the first `limit` tokens of a context are kept, and how far into it they go.

        A length of 0 comes with None. A segment that is used in part ends before its own end.
        """
        last, length = None, 0
        for segment in self.last.chain():
            if segment.stored is None or length >= limit:
                break
            own, given = segment.token_ids, token_ids[segment.start : min(segment.end, limit)]
            shared = len(own) if own == given else shared_length(own, given)
            if shared == 0:
                break
            last, length = segment, segment.start + shared
            if shared < len(own):
                break
        return last, length


def shared_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
