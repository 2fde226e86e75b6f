from __future__ import annotations

import copy
import pickle

import torch
from tiny_models import request

from firesteel.generators.kv import CachedContext, Epoch, KVBuffer
from firesteel.generators.prefill import Job, block_inputs, blocks, plan_jobs

MIN = torch.finfo(torch.float32).min


def cached(epoch: Epoch, token_ids: tuple[int, ...]) -> CachedContext:
    buffer = KVBuffer(torch.zeros(1, 1, 1, 8, 2), torch.zeros(1, 1, 1, 8, 2))
    epoch.register(buffer)
    return CachedContext(epoch, 0, token_ids, buffer, row=0, start=8 - len(token_ids))


def lengths(groups: list[list[Job]]) -> list[list[int]]:
    return [[job.num_uncached for job in group] for group in groups]


def test_a_cache_covers_the_common_prefix() -> None:
    context = cached(Epoch(), (1, 2, 3, 4))
    assert context.shared_length((1, 2, 3, 4, 5)) == 4
    assert context.shared_length((1, 2, 9, 4, 5)) == 2
    assert context.shared_length((1, 2)) == 2
    assert context.shared_length((9,)) == 0


def test_identical_contexts_are_one_job() -> None:
    jobs = plan_jobs([request([1, 2]), request([3]), request([1, 2], seed=5)], Epoch())
    assert [(job.token_ids, job.requests) for job in jobs] == [((1, 2), [0, 2]), ((3,), [1])]


def test_the_longest_valid_cache_is_taken_and_never_the_last_token() -> None:
    epoch = Epoch()
    short, long, foreign = cached(epoch, (1, 2)), cached(epoch, (1, 2, 3, 4)), cached(Epoch(), (1, 2, 3))
    context = [1, 2, 3, 4]
    requests = [request(context, cache=each) for each in (foreign, short, long, None, "not a cache")]
    (job,) = plan_jobs(requests, epoch)
    assert job.cached is long
    assert (job.num_cached, job.num_uncached) == (3, 1)


def test_a_cache_that_shares_nothing_is_no_cache() -> None:
    epoch = Epoch()
    (job,) = plan_jobs([request([5, 6], cache=cached(epoch, (1, 2)))], epoch)
    assert job.cached is None


def test_blocks_hold_similar_lengths_and_a_bounded_number_of_tokens() -> None:
    jobs = [Job(tuple(range(length))) for length in (3, 100, 60, 49, 20, 1)]
    # 49 is less than half of 100; 20 is less than half of 49; 3 and 1 are short, but 20 is not.
    assert lengths(list(blocks(jobs, 10_000))) == [[100, 60], [49], [20], [3, 1]]
    # Two rows of 100 columns would be 200 tokens, two of 60 are 120.
    assert lengths(list(blocks(jobs, 150))) == [[100], [60, 49], [20], [3, 1]]
    # A job larger than the limit still gets its block.
    assert lengths(list(blocks(jobs, 1))) == [[100], [60], [49], [20], [3], [1]]
    assert lengths(list(blocks([Job((1,) * 16), Job((1,))], 10_000))) == [[16, 1]]


def test_block_inputs_by_hand() -> None:
    # Two new columns of three: row 0 computes tokens 8 and 9 behind a cached 7, row 1 is one token and padding.
    inputs = block_inputs([(7, 8, 9), (5,)], 2, torch.float32, torch.device("cpu"))
    assert inputs.tokens.tolist() == [[8, 9], [0, 5]]
    assert inputs.positions.tolist() == [[1, 2], [0, 0]]
    assert inputs.attention is not None
    assert inputs.attention[0, 0].tolist() == [[0, 0, MIN], [0, 0, 0]]
    # The padding query sees itself only; the real one does not see padding.
    assert inputs.attention[1, 0].tolist() == [[MIN, 0, MIN], [MIN, MIN, 0]]


def test_equal_lengths_without_a_cache_need_no_mask() -> None:
    assert block_inputs([(1, 2), (3, 4)], 2, torch.float32, torch.device("cpu")).attention is None
    assert block_inputs([(1, 2), (3, 4)], 1, torch.float32, torch.device("cpu")).attention is not None


def test_the_end_of_an_epoch_frees_memory_that_completions_still_refer_to() -> None:
    epoch = Epoch()
    context = cached(epoch, (1, 2))
    epoch.end()
    assert context.buffer.keys.numel() == context.buffer.values.numel() == 0


def test_a_stored_or_copied_cache_is_none() -> None:
    context = cached(Epoch(), (1, 2))
    assert pickle.loads(pickle.dumps(context)) is None
    assert copy.deepcopy(context) is None
    assert repr(context) == "CachedContext(2 tokens, policy version 0)"
