"""From rows of tokens to one stream in which tokens that rows share stand once.

Rows whose first tokens are equal have equal hidden states there, whatever node, branch or tree they come from: the
state of a token depends on the tokens before it and on nothing else. So rows are put in the order of their tokens,
which makes them the leaves of a trie walked depth first, and each adds only what the row before it did not hold.

Three things then follow without a search. What descends from a token lies right behind it, in one contiguous range
of slots; what a row adds continues its own path causally (a `Chain`); and everything that branches off a chain at one
place sees the same contiguous piece of that chain (a `Part`), siblings and their descendants together.

Legend: `S` slots of the stream, `T` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

MICRO_BATCH_TOKENS = 64
"""What one more pass costs, in tokens: cutting between trees saves repeated prefixes, and is not worth any number of
passes."""


class Chain(NamedTuple):
    """Slots `start` to `end` follow each other on one path: causal attention among themselves."""

    start: int
    end: int


class Part(NamedTuple):
    """Every query slot of a contiguous range sees every key slot of another, which lies on all their paths."""

    query_start: int
    query_end: int
    key_start: int
    key_end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A stream of S slots. Each slot attends to itself, to earlier slots of its chain, and to parts.

    `subtree_end_S` is the first slot behind a slot's descendants: slot i sees slot j if j <= i < subtree_end_S[j].
    `slots` has one array per row, [T]: where each token of the row stands in the stream.
    """

    token_ids_S: Ints
    positions_S: Ints
    subtree_end_S: Ints
    chains: tuple[Chain, ...]
    parts: tuple[Part, ...]
    slots: tuple[Ints, ...]

    def __len__(self) -> int:
        return len(self.token_ids_S)

    def padded(self, multiple: int) -> Layout:
        """The same stream with slots at its end that nothing sees, up to a multiple of `multiple`."""
        missing = -len(self) % multiple
        if not missing:
            return self
        own = np.arange(len(self), len(self) + missing, dtype=np.int64)
        zeros = np.zeros(missing, dtype=np.int64)
        return Layout(
            np.concatenate([self.token_ids_S, zeros]),
            np.concatenate([self.positions_S, zeros]),
            np.concatenate([self.subtree_end_S, own + 1]),
            (*self.chains, *(Chain(int(slot), int(slot) + 1) for slot in own)),
            self.parts,
            self.slots,
        )


def trie_order(rows: Sequence[Ints]) -> tuple[list[int], Ints]:
    """Row indices in the order of their tokens, and how many first tokens each shares with the one before it.

    A row that begins another one comes right before it. The first row shares 0.
    """
    # big-endian bytes compare like the numbers that they are
    keys = [np.asarray(row, dtype=">u8").tobytes() for row in rows]
    order = sorted(range(len(rows)), key=lambda index: (keys[index], index))
    shared = np.zeros(len(rows), dtype=np.int64)
    for place in range(1, len(order)):
        shared[place] = common_prefix(rows[order[place - 1]], rows[order[place]])
    return order, shared


def common_prefix(one: Ints, other: Ints) -> int:
    """How many first tokens are equal."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def cut(lengths: Sequence[int], shared: Ints, most_tokens: int) -> list[range]:
    """Cuts rows in trie order into micro-batches of at most `most_tokens` slots, with the fewest slots in all.

    A cut repeats the prefix that the row behind it shares with the row before it: nothing between unrelated trees, the
    path to the branching inside a tree. Each micro-batch counts `MICRO_BATCH_TOKENS` on top. A row longer than
    `most_tokens` gets a micro-batch of its own.
    """
    count = len(lengths)
    added_until = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64) - shared)])
    least = np.zeros(count + 1)
    cut_before = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        first = min(end - 1, int(np.searchsorted(added_until, added_until[end] - most_tokens)))
        starts = np.arange(first, end)
        fits = (added_until[end] - added_until[starts] + shared[starts] <= most_tokens) | (starts == end - 1)
        cost = np.where(fits, least[starts] + shared[starts] + MICRO_BATCH_TOKENS, np.inf)
        best = int(cost.argmin())
        least[end], cut_before[end] = cost[best], first + best
    batches = []
    end = count
    while end:
        batches.append(range(int(cut_before[end]), end))
        end = int(cut_before[end])
    return batches[::-1]


def num_slots(lengths: Sequence[int], shared: Ints, batches: Sequence[range]) -> int:
    """Slots of all micro-batches: what goes through the model."""
    added = np.asarray(lengths, dtype=np.int64) - shared
    return int(added.sum()) + sum(int(shared[batch.start]) for batch in batches if len(batch))


@dataclass(slots=True)
class _OpenChain:
    """A chain on the current path. `part` is the place in the list of parts of what it sees of its parent chain."""

    start: int
    position: int
    part: int | None


def lay_out(rows: Sequence[Ints], shared: Ints) -> Layout:
    """The stream of rows in trie order; `shared` as from `trie_order` (what the first row shares is ignored)."""
    path = np.zeros(max((len(row) for row in rows), default=0), dtype=np.int64)
    pieces: list[Any] = []
    positions: list[Any] = []
    slots: list[Ints] = []
    subtree_end_S = np.zeros(sum(len(row) for row in rows), dtype=np.int64)
    chains: list[Chain] = []
    parts: list[Part] = []
    open_chains: list[_OpenChain] = []
    end = previous = 0
    for place, row in enumerate(rows):
        kept = int(shared[place]) if place else 0
        subtree_end_S[path[kept:previous]] = end
        if len(row) > kept:
            part = _close(open_chains, parts, kept, end)
            if open_chains and kept == previous:
                chains[-1] = Chain(chains[-1].start, end + len(row) - kept)
            else:
                if open_chains and part is None:
                    top = open_chains[-1]
                    part = len(parts)
                    parts.append(Part(end, end, top.start, top.start + kept - top.position))
                open_chains.append(_OpenChain(end, kept, part))
                chains.append(Chain(end, end + len(row) - kept))
            pieces.append(row[kept:])
            positions.append(np.arange(kept, len(row), dtype=np.int64))
            path[kept : len(row)] = np.arange(end, end + len(row) - kept)
            end += len(row) - kept
        slots.append(path[: len(row)].copy())
        previous = len(row)
    _close(open_chains, parts, -1, end)
    subtree_end_S[path[:previous]] = end
    ends_S = subtree_end_S[:end]
    return Layout(_joined(pieces), _joined(positions), ends_S, tuple(chains), tuple(parts), tuple(slots))


def _close(open_chains: list[_OpenChain], parts: list[Part], kept: int, end: int) -> int | None:
    """Leaves the chains that do not hold the first `kept` tokens of the next row.

    Where the last of them began at `kept`, the next chain is its sibling and sees the same part: that is returned.
    """
    while open_chains and open_chains[-1].position >= kept:
        chain = open_chains.pop()
        if chain.position == kept:
            return chain.part
        if chain.part is not None:
            parts[chain.part] = parts[chain.part]._replace(query_end=end)
    return None


def _joined(arrays: list[Any]) -> Ints:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
