"""Which contexts must be computed, which are kept already, and in which blocks.

Identical contexts of a batch become one job, whose keys and values are computed once. So does a beginning that several
contexts share and that is not kept yet: it becomes a job of its own, in a round before theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from firesteel.generators.kv import KVBuffer
from firesteel.generators.segments import CachedContext, Segment, Store, carve, shared_length
from firesteel.types import Request

MIXED_SUFFIX_LENGTH = 16
"""Suffixes up to this length share a block whatever their lengths: a forward pass costs more than the padding."""

MIN_SAVED_TOKENS = 64
"""A common beginning gets a pass of its own if that saves so many tokens."""


@dataclass(slots=True, eq=False)
class Job:
    """One distinct context and the requests that have it; `last` is the segment up to which it is kept by now.

    `beginning` is the job of an earlier round whose context this one continues. `filled` is a view of one row that ends
    with the context's last token, once it is computed.
    """

    token_ids: tuple[int, ...]
    requests: list[int] = field(default_factory=list)
    last: Segment | None = None
    beginning: Job | None = None
    filled: KVBuffer | None = None

    @property
    def num_cached(self) -> int:
        return 0 if self.last is None else self.last.end

    @property
    def num_uncached(self) -> int:
        return len(self.token_ids) - self.num_cached


def plan_jobs(requests: Sequence[Request], store: Store) -> list[Job]:
    """One job per distinct context, in the order of their first requests, each with the best valid cache offered.

    A cache counts if it is of this store; of what it covers, the longest common prefix with the context is
    used, but never the last token, whose forward pass gives the distribution of the next one.
    """
    jobs: dict[tuple[int, ...], Job] = {}
    best: dict[Job, tuple[Segment | None, int]] = {}
    for index, request in enumerate(requests):
        token_ids = tuple(request.token_ids)
        job = jobs.setdefault(token_ids, Job(token_ids))
        job.requests.append(index)
        cached = request.cache
        if isinstance(cached, CachedContext) and cached.store is store:
            found = cached.covered(token_ids, len(token_ids) - 1)
            if found[1] > best.get(job, (None, 0))[1]:
                best[job] = found
    for job, (segment, length) in best.items():
        if segment is not None and segment.end != length:
            segment = _cut(segment, length)
            store.add(segment)
        job.last = segment
    return list(jobs.values())


def _cut(segment: Segment, length: int) -> Segment:
    """The beginning of a segment, up to position `length` of the context, as a segment of its own."""
    assert segment.stored is not None
    count = length - segment.start
    view = segment.stored.part(slice(None), slice(0, count))
    return carve(segment.parent, segment.token_ids[:count], view)


def rounds(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs, after those of beginnings that enough of them share: a round needs only rounds before it."""
    ordered = sorted(jobs, key=lambda job: job.token_ids)
    common = [
        min(shared_length(one.token_ids, other.token_ids), len(one.token_ids) - 1, len(other.token_ids) - 1)
        for one, other in pairwise(ordered)
    ]
    beginnings: list[Job] = []
    for first, end, length in _best_spans(ordered, common, 0, len(ordered))[1]:
        members = ordered[first:end]
        deepest = max(members, key=lambda job: job.num_cached)
        beginning = Job(deepest.token_ids[:length], last=deepest.last)
        beginnings.append(beginning)
        for member in members:
            if member.num_cached < length:
                member.beginning = beginning
    return [*(rounds(beginnings) if beginnings else []), list(jobs)]


def _best_spans(
    ordered: Sequence[Job], common: Sequence[int], first: int, end: int
) -> tuple[int, list[tuple[int, int, int]]]:
    """Ranges (first, end, length) of jobs that share `length` tokens which save most when computed once, with how much.

    A range and those inside it are alternatives: the range is taken where it saves more than all of them together.
    """
    if end - first < 2:
        return 0, []
    length = min(common[first : end - 1])
    cuts = [first, *(i + 1 for i in range(first, end - 1) if common[i] == length), end]
    parts = [_best_spans(ordered, common, begin, stop) for begin, stop in pairwise(cuts)]
    inner = sum(saved for saved, _ in parts)
    missing = [max(0, length - job.num_cached) for job in ordered[first:end]]
    saved = sum(missing) - min(missing)
    # The deepest cache may go beyond what is common: then there is nothing to compute for it.
    if saved >= max(MIN_SAVED_TOKENS, inner + 1) and min(missing) > 0:
        return saved, [(first, end, length)]
    return inner, [span for _, spans in parts for span in spans]


def blocks(jobs: Sequence[Job], max_tokens: int, max_cells: int | None = None) -> Iterator[list[Job]]:
    """Splits jobs into blocks for one forward pass each: the longest suffix first, stable.

    A suffix of less than half the longest one of the block begins a new block (unless all are short), and a
    block holds at most `max_tokens` new tokens and `max_cells` tokens in all, with its padding, but always at least
    one job.
    """
    block: list[Job] = []
    for job in sorted(jobs, key=lambda each: -each.num_uncached):
        longest = block[0].num_uncached if block else 0
        is_too_short = longest > MIXED_SUFFIX_LENGTH and 2 * job.num_uncached < longest
        size = len(block) + 1
        width = max(len(each.token_ids) for each in (*block, job))
        is_too_large = longest * size > max_tokens or (max_cells is not None and width * size > max_cells)
        if block and (is_too_short or is_too_large):
            yield block
            block = []
        block.append(job)
    if block:
        yield block


@dataclass(frozen=True, slots=True)
class Block:
    """The model inputs of one prefill pass over `B` rows, `S` new columns, `C` columns in all.

    `tokens` and `positions` are [B, S]; `mask` is [B, 1, S, C], added to the attention scores, or None
    where plain causal attention is the same.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None


def block_inputs(
    contexts: Sequence[tuple[int, ...]],
    num_new: int,
    dtype: torch.dtype,
    device: torch.device,
    offsets: Sequence[int] | None = None,
) -> Block:
    """The inputs that compute the last `num_new` tokens of every context, right-aligned in the longest one's columns.

    A row whose uncached suffix is shorter than the block computes the end of its cached prefix again, which
    costs no more than padding would. A row whose whole context is shorter is padded on the left; a padding
    query attends to itself only, so that it stays finite, and no other query attends to it. `offsets` are the
    positions at which the contexts begin, behind a prefix that is not in the columns; None: 0.
    """
    num_columns = max(map(len, contexts))
    padded = [(0,) * max(0, num_new - len(ids)) + ids[-num_new:] for ids in contexts]
    starts = torch.tensor([num_columns - len(ids) for ids in contexts], device=device)
    columns = torch.arange(num_columns, device=device)
    queries = columns[num_columns - num_new :]
    positions = (queries - starts[:, None]).clamp_min(0)
    if offsets is not None:
        positions = positions + torch.tensor(offsets, device=device)[:, None]
    mask = None
    if num_new < num_columns or any(len(ids) < num_columns for ids in contexts):
        is_past = columns <= queries[:, None]
        is_own = columns == queries[:, None]
        is_real = columns >= starts[:, None, None]
        is_allowed = (is_past & is_real) | is_own
        mask = torch.where(is_allowed, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
    return Block(torch.tensor(padded, device=device), positions, mask)


def place(job: Job, buffer: KVBuffer, row: int, first: int) -> None:
    """Writes what is kept of a job's context from position `first` on, right-aligned with its missing end."""
    end = buffer.num_columns - job.num_uncached
    start = end - (job.num_cached - first)
    buffer.cell(row, 0, start).clear()
    if job.last is not None and job.num_cached > first:
        job.last.copy_to(buffer.cell(row, start, end), first)
