"""Which contexts must be computed, which are copied, and in which blocks.

Identical contexts of a batch become one job: its keys and values are computed once and copied to the other
rows. A job's uncached suffix is computed in a block with other suffixes of about the same length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from firesteel.generators.kv import CachedContext, Epoch
from firesteel.types import Request

MIXED_SUFFIX_LENGTH = 16
"""Suffixes up to this length share a block whatever their lengths: a forward pass costs more than the padding."""


@dataclass(slots=True)
class Job:
    """One distinct context: the requests that have it, and the cache that covers its first `num_cached` tokens."""

    token_ids: tuple[int, ...]
    requests: list[int] = field(default_factory=list)
    cached: CachedContext | None = None
    num_cached: int = 0

    @property
    def num_uncached(self) -> int:
        return len(self.token_ids) - self.num_cached


def plan_jobs(requests: Sequence[Request], epoch: Epoch) -> list[Job]:
    """One job per distinct context, in the order of their first requests, each with the best valid cache offered.

    A cache counts if it is of this epoch; of what it covers, the longest common prefix with the context is
    used, but never the last token, whose forward pass gives the distribution of the next one.
    """
    jobs: dict[tuple[int, ...], Job] = {}
    for index, request in enumerate(requests):
        token_ids = tuple(request.token_ids)
        job = jobs.setdefault(token_ids, Job(token_ids))
        job.requests.append(index)
        cached = request.cache
        if not isinstance(cached, CachedContext) or cached.epoch is not epoch or cached is job.cached:
            continue
        usable = min(cached.shared_length(token_ids), len(token_ids) - 1)
        if usable > job.num_cached:
            job.cached, job.num_cached = cached, usable
    return list(jobs.values())


def blocks(jobs: Sequence[Job], max_tokens: int) -> Iterator[list[Job]]:
    """Splits jobs into blocks for one forward pass each: the longest suffix first, stable.

    A suffix of less than half the longest one of the block begins a new block (unless all are short), and a
    block holds at most `max_tokens` tokens with its padding, but always at least one job.
    """
    block: list[Job] = []
    for job in sorted(jobs, key=lambda each: -each.num_uncached):
        longest = block[0].num_uncached if block else 0
        is_too_short = longest > MIXED_SUFFIX_LENGTH and 2 * job.num_uncached < longest
        if block and (is_too_short or longest * (len(block) + 1) > max_tokens):
            yield block
            block = []
        block.append(job)
    if block:
        yield block


@dataclass(frozen=True, slots=True)
class Block:
    """The model inputs of one prefill pass over `B` rows, `S` new columns, `C` columns in all.

    `tokens` and `positions` are [B, S]; `attention` is [B, 1, S, C], added to the attention scores, or None
    where plain causal attention is the same.
    """

    tokens: Tensor
    positions: Tensor
    attention: Tensor | None


def block_inputs(contexts: Sequence[tuple[int, ...]], num_new: int, dtype: torch.dtype, device: torch.device) -> Block:
    """The inputs that compute the last `num_new` tokens of every context, right-aligned in the longest one's columns.

    A row whose uncached suffix is shorter than the block computes the end of its cached prefix again, which
    costs no more than padding would. A row whose whole context is shorter is padded on the left; a padding
    query attends to itself only, so that it stays finite, and no other query attends to it.
    """
    num_columns = max(map(len, contexts))
    padded = [(0,) * max(0, num_new - len(ids)) + ids[-num_new:] for ids in contexts]
    starts = torch.tensor([num_columns - len(ids) for ids in contexts], device=device)
    columns = torch.arange(num_columns, device=device)
    queries = columns[num_columns - num_new :]
    positions = (queries - starts[:, None]).clamp_min(0)
    attention = None
    if num_new < num_columns or any(len(ids) < num_columns for ids in contexts):
        is_past = columns <= queries[:, None]
        is_own = columns == queries[:, None]
        is_real = columns >= starts[:, None, None]
        is_allowed = (is_past & is_real) | is_own
        attention = torch.where(is_allowed, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
    return Block(torch.tensor(padded, device=device), positions, attention)
