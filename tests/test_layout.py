"""Streams in which shared tokens stand once: by hand, and what any set of rows must give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firesteel.layout import MICRO_BATCH_TOKENS, Chain, Layout, Part, cut, lay_out, num_slots, trie_order

ROWS = [[1, 2, 3, 4], [1, 2, 5], [7, 8], [1, 2, 5, 6, 6], [1, 9]]


def arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def laid_out(rows: list[list[int]]) -> tuple[list[np.ndarray], Layout]:
    order, shared = trie_order(arrays(rows))
    ordered = [arrays(rows)[index] for index in order]
    return ordered, lay_out(ordered, shared)


def seen(layout: Layout) -> np.ndarray:
    """How often each slot (row) looks at each slot (column), by chains and parts."""
    counts = np.zeros((len(layout), len(layout)), dtype=int)
    for start, end in layout.chains:
        counts[start:end, start:end] += np.tril(np.ones((end - start, end - start), dtype=int))
    for part in layout.parts:
        counts[part.query_start : part.query_end, part.key_start : part.key_end] += 1
    return counts


def test_trie_order_by_hand() -> None:
    # [1 2 3 4], [1 2 5], [1 2 5 6 6], [1 9], [7 8]; a row that begins another comes before it
    order, shared = trie_order(arrays(ROWS))
    assert order == [0, 1, 3, 4, 2]
    assert shared.tolist() == [0, 2, 3, 1, 0]
    assert trie_order([]) == ([], pytest.approx(np.zeros(0)))


def test_tokens_beyond_a_byte_are_compared_as_numbers() -> None:
    # little-endian bytes would put 256 (00 01) before 1 (01 00)
    assert trie_order(arrays([[256], [1], [70000]]))[0] == [1, 0, 2]


def test_a_layout_by_hand() -> None:
    _, layout = laid_out(ROWS)
    # slots       0  1  2  3 | 4  5  6 | 7 | 8  9
    assert layout.token_ids_S.tolist() == [1, 2, 3, 4, 5, 6, 6, 9, 7, 8]
    assert layout.positions_S.tolist() == [0, 1, 2, 3, 2, 3, 4, 1, 0, 1]
    assert layout.subtree_end_S.tolist() == [8, 7, 4, 4, 7, 7, 7, 8, 10, 10]
    # [1 2 5] and [1 2 5 6 6] are one chain; it sees slots 0 and 1, [9] sees slot 0
    assert layout.chains == (Chain(0, 4), Chain(4, 7), Chain(7, 8), Chain(8, 10))
    assert layout.parts == (Part(4, 7, 0, 2), Part(7, 8, 0, 1))
    assert [slots.tolist() for slots in layout.slots] == [[0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5, 6], [0, 7], [8, 9]]


def test_siblings_and_their_descendants_see_one_part() -> None:
    # two further children of [1 1], the second of which branches again
    _, layout = laid_out([[1, 1, 2], [1, 1, 3], [1, 1, 4, 4], [1, 1, 4, 5]])
    assert layout.chains == (Chain(0, 3), Chain(3, 4), Chain(4, 6), Chain(6, 7))
    assert layout.parts == (Part(3, 7, 0, 2), Part(6, 7, 4, 5))


def test_equal_rows_stand_once() -> None:
    _, layout = laid_out([[3, 4], [3, 4], [3, 4]])
    assert len(layout) == 2 and [slots.tolist() for slots in layout.slots] == [[0, 1]] * 3


def test_padding_sees_itself_alone() -> None:
    _, layout = laid_out(ROWS)
    padded = layout.padded(8)
    assert len(padded) == 16 and padded.parts == layout.parts and layout.padded(5) is layout
    assert np.array_equal(seen(padded)[10:], np.eye(16, dtype=int)[10:])
    assert padded.subtree_end_S[10:].tolist() == [11, 12, 13, 14, 15, 16]


def test_cuts_by_hand() -> None:
    # rows of 40 that share 30 with the row before, except the third, which begins another tree
    lengths, shared = [40, 40, 40, 40], np.array([0, 30, 0, 30])
    assert cut(lengths, shared, 200) == [range(0, 4)]
    # 40 + 10 + 40 + 10 = 100 > 95; between the trees nothing is repeated, elsewhere 30
    assert cut(lengths, shared, 95) == [range(0, 2), range(2, 4)]
    assert num_slots(lengths, shared, [range(0, 2), range(2, 4)]) == 100
    # 50 does not fit either: every row alone, each with its prefix
    assert cut(lengths, shared, 40) == [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]
    assert num_slots(lengths, shared, cut(lengths, shared, 40)) == 160
    assert cut(lengths, shared, 7) == cut(lengths, shared, 40)
    assert cut([], np.zeros(0, dtype=np.int64), 7) == []


def test_a_cut_in_a_tree_comes_where_the_path_is_short() -> None:
    # 100 + 10 + 10 + 10 > 120; cutting before the third row repeats 20 tokens, elsewhere 90
    assert cut([100, 100, 30, 30], np.array([0, 90, 20, 20]), 120) == [range(0, 2), range(2, 4)]
    assert MICRO_BATCH_TOKENS > 0


row = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=9), most=st.integers(1, 30))
def test_any_rows_are_laid_out_once_and_see_their_own_past(rows: list[list[int]], most: int) -> None:
    ordered, layout = laid_out(rows)
    assert len(layout) == len({tuple(each[: end + 1]) for each in rows for end in range(len(each))})
    past = np.zeros((len(layout), len(layout)), dtype=int)
    for each, slots in zip(ordered, layout.slots, strict=True):
        assert np.array_equal(layout.token_ids_S[slots], each)
        assert np.array_equal(layout.positions_S[slots], np.arange(len(each)))
        for place, slot in enumerate(slots):
            past[slot, slots[: place + 1]] = 1
    index = np.arange(len(layout))
    rule = (index[None] <= index[:, None]) & (index[:, None] < layout.subtree_end_S[None])
    assert np.array_equal(rule, past) and np.array_equal(seen(layout), past)

    shared = trie_order(arrays(rows))[1]
    lengths = [len(each) for each in ordered]
    batches = cut(lengths, shared, most)
    assert [place for batch in batches for place in batch] == list(range(len(rows)))
    sizes = [len(lay_out(ordered[batch.start : batch.stop], shared[batch.start : batch.stop])) for batch in batches]
    assert sum(sizes) == num_slots(lengths, shared, batches)
    assert all(size <= most or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
