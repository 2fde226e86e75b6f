from __future__ import annotations

from itertools import count

import torch
from tiny_segments import TINY, numbered, segment

from firesteel.generators.segments import Segment
from firesteel.generators.sharing import Groups, shared_prefixes

numbers = count()


def behind(parent: Segment | None, length: int) -> Segment:
    return segment(parent, [next(numbers) for _ in range(length)])


def test_rows_with_a_long_common_context_are_a_group() -> None:
    prefix = behind(None, 1100)
    rows = [behind(prefix, 5) for _ in range(2)]
    # 2 * 1100 tokens are read once instead of twice: 1100 saved, more than the 1024 that a group costs.
    assert shared_prefixes([*rows, behind(None, 3000), None]) == [prefix, prefix, None, None]


def test_a_short_common_context_is_read_by_every_row() -> None:
    prefix = behind(None, 1000)
    assert shared_prefixes([behind(prefix, 5) for _ in range(2)]) == [None, None]
    # With a third row it saves 2000.
    assert shared_prefixes([behind(prefix, 5) for _ in range(3)]) == [prefix] * 3


def test_identical_contexts_share_all_of_them() -> None:
    context = behind(behind(None, 300), 300)
    assert shared_prefixes([context] * 4) == [context] * 4


def test_of_nested_prefixes_the_better_division_is_taken() -> None:
    root = behind(None, 1000)
    left, right = behind(root, 2000), behind(root, 2000)
    rows = [behind(left, 1), behind(left, 1), behind(right, 1), behind(right, 1)]
    # All four save 3 * 1000 - 1024; two pairs save 2 * (3000 - 1024).
    assert shared_prefixes(rows) == [left, left, right, right]
    # One row on the right: the pair and a single row save 3000 - 1024 = 1976, three at the root 2 * 1000 - 1024.
    assert shared_prefixes(rows[:3]) == [left, left, None]
    # Shorter sides: three at the root save 976, the pair 1500 - 1024 = 476.
    near = behind(root, 500)
    assert shared_prefixes([behind(near, 1), behind(near, 1), rows[2]]) == [root] * 3


def test_joining_a_group_costs_nothing() -> None:
    prefix = behind(None, 50)
    assert shared_prefixes([behind(prefix, 5)], known=[prefix]) == [prefix]
    assert shared_prefixes([behind(prefix, 5)]) == [None]


def test_groups_keep_a_prefix_in_one_piece() -> None:
    whole = segment(None, [1, 2])
    pieces = segment(segment(None, [3]), [4, 5])
    groups = Groups(TINY, [pieces, None, whole, whole, pieces], {})
    one, other = groups.prefixes
    assert numbered(one.keys[0]) == [3, 4, 5]
    assert isinstance(one.rows, torch.Tensor) and one.rows.tolist() == [0, 4]
    # One segment is used where it lies.
    assert groups.stored[whole] is whole.stored
    assert other.rows == slice(2, 4)
    again = Groups(TINY, [None, pieces], groups.stored)
    assert again.stored[pieces] is groups.stored[pieces]
    assert list(again.stored) == [pieces]
