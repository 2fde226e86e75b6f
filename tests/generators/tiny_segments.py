"""Segments whose keys are their token ids, and whose values are minus them: one layer, one head, one dimension."""

from __future__ import annotations

import torch

from firesteel.generators.kv import KVBuffer, KVShape
from firesteel.generators.segments import CachedContext, Segment, Store

TINY = KVShape(1, 1, 1, 1, 1, torch.float32, torch.device("cpu"))
"""8 bytes a token."""


def segment(parent: Segment | None, token_ids: list[int]) -> Segment:
    keys = torch.tensor(token_ids, dtype=torch.float32).view(1, 1, 1, -1, 1)
    return Segment(parent, tuple(token_ids), KVBuffer(keys, -keys))


def context(store: Store, *parts: list[int]) -> CachedContext:
    """A context of several segments, the last use of the store."""
    last = None
    for part in parts:
        last = segment(last, part)
        store.add(last)
    assert last is not None
    store.touch(last)
    return CachedContext(store, 0, last)


def numbered(tensor: torch.Tensor) -> list[float]:
    return tensor.flatten().tolist()
