from __future__ import annotations

import copy
import gc
import pickle

import torch
from tiny_segments import TINY, context, numbered, segment

from firesteel.generators.kv import KVBuffer
from firesteel.generators.segments import SHORT_TOKENS, Store, carve


def test_a_context_is_copied_from_any_position_on() -> None:
    last = segment(segment(segment(None, [1, 2]), [3]), [4, 5])
    for first in range(5):
        target = KVBuffer.zeros(TINY, 1, 5 - first)
        last.copy_to(target, first)
        assert numbered(target.keys) == [1, 2, 3, 4, 5][first:]
        assert numbered(target.values) == [-1, -2, -3, -4, -5][first:]


def row_of(*token_ids: int) -> KVBuffer:
    buffer = KVBuffer.zeros(TINY, 2, len(token_ids))
    buffer.keys[0, 1, 0, :, 0] = torch.tensor(token_ids)
    return buffer.cell(1, 0, len(token_ids))


def test_a_carved_segment_is_a_copy() -> None:
    row, parent = row_of(2, 3), segment(None, list(range(SHORT_TOKENS + 1)))
    made = carve(parent, (2, 3), row)
    row.keys.zero_()
    assert made.parent is parent and made.stored is not None
    assert (made.start, made.end, numbered(made.stored.keys)) == (65, 67, [2, 3])


def test_short_segments_become_part_of_what_follows_where_they_are_in_the_row() -> None:
    first = segment(None, [1, 2, 3])
    second = segment(first, [4, 5])
    whole = carve(second, (6,), row_of(1, 2, 3, 4, 5, 6))
    assert (whole.parent, whole.start, whole.token_ids) == (None, 0, (1, 2, 3, 4, 5, 6))
    assert whole.stored is not None and numbered(whole.stored.keys) == [1, 2, 3, 4, 5, 6]
    # The row begins behind the first token, and so behind the beginning of the first segment.
    part = carve(second, (6,), row_of(2, 3, 4, 5, 6))
    assert (part.parent, part.start, part.token_ids) == (first, 3, (4, 5, 6))


def test_a_context_of_many_turns_has_few_segments() -> None:
    last, tokens = None, []
    for turn in range(100):
        new = tuple(range(turn, turn + 12))
        tokens += new
        last = carve(last, new, row_of(*tokens))
    assert last is not None and last.end == 1200
    assert len(last.chain()) <= 6
    target = KVBuffer.zeros(TINY, 1, 1200)
    last.copy_to(target, 0)
    assert numbered(target.keys) == tokens


def test_a_context_covers_the_common_prefix() -> None:
    cached = context(Store(TINY), [1, 2], [3, 4])
    first, second = cached.last.chain()
    assert cached.covered((1, 2, 3, 4, 5), 5) == (second, 4)
    assert cached.covered((1, 2, 9, 4, 5), 5) == (first, 2)
    assert cached.covered((1, 2, 3, 9), 4) == (second, 3)
    assert cached.covered((1, 2, 3, 4), 3) == (second, 3)
    assert cached.covered((1, 2), 1) == (first, 1)
    assert cached.covered((9,), 1) == (None, 0)


def test_behind_a_dropped_segment_nothing_is_covered() -> None:
    cached = context(Store(TINY), [1, 2], [3], [4])
    first, second, _ = cached.last.chain()
    second.stored = None
    assert cached.covered((1, 2, 3, 4, 5), 5) == (first, 2)
    first.stored = None
    assert cached.covered((1, 2, 3, 4, 5), 5) == (None, 0)


def test_what_nothing_refers_to_takes_no_memory() -> None:
    store = Store(TINY)
    one = context(store, [1, 2], [3])
    other = context(store, [4])
    assert store.num_bytes == 4 * 8
    del one
    gc.collect()
    assert store.num_bytes == 8
    assert other.last.stored is not None


def test_the_least_recently_used_is_dropped_first_and_ends_before_beginnings() -> None:
    store = Store(TINY)
    old, new = context(store, [1, 2], [3]), context(store, [4, 5], [6])
    store.make_room(6 * 8)
    assert store.evicted_tokens == 0
    store.make_room(5 * 8)
    # The end of the old context; its beginning may serve other contexts.
    assert [each.stored is None for each in old.last.chain()] == [False, True]
    store.touch(old.last.chain()[0])
    store.make_room(3 * 8)
    assert [each.stored is None for each in new.last.chain()] == [True, True]
    assert old.last.chain()[0].stored is not None
    assert (store.evicted_tokens, store.num_bytes) == (1 + 3, 2 * 8)


def test_what_is_needed_stays() -> None:
    store = Store(TINY)
    old, new = context(store, [1, 2]), context(store, [3])
    store.make_room(0, [old.last])
    assert old.last.stored is not None and new.last.stored is None


def test_the_end_of_a_store_frees_memory_that_completions_still_refer_to() -> None:
    store = Store(TINY)
    cached = context(store, [1, 2], [3])
    store.end()
    assert all(each.stored is None for each in cached.last.chain())
    assert store.num_bytes == 0


def test_a_stored_or_copied_cache_is_none() -> None:
    cached = context(Store(TINY), [1, 2])
    assert pickle.loads(pickle.dumps(cached)) is None
    assert copy.deepcopy(cached) is None
    assert repr(cached) == "CachedContext(2 tokens, policy version 0)"
