from __future__ import annotations

import torch
from tiny_models import request
from tiny_segments import TINY, context, numbered, segment

from firesteel.generators.kv import KVBuffer
from firesteel.generators.prefill import Job, block_inputs, blocks, place, plan_jobs, rounds
from firesteel.generators.segments import Store

MIN = torch.finfo(torch.float32).min
CPU = torch.device("cpu")


def lengths(groups: list[list[Job]]) -> list[list[int]]:
    return [[job.num_uncached for job in group] for group in groups]


# plan_jobs


def test_identical_contexts_are_one_job() -> None:
    jobs = plan_jobs([request([1, 2]), request([3]), request([1, 2], seed=5)], Store(TINY))
    assert [(job.token_ids, job.requests) for job in jobs] == [((1, 2), [0, 2]), ((3,), [1])]


def test_the_longest_valid_cache_is_taken_and_never_the_last_token() -> None:
    store = Store(TINY)
    short, long, foreign = context(store, [1, 2]), context(store, [1, 2, 3, 4]), context(Store(TINY), [1, 2, 3])
    requests = [request([1, 2, 3, 4], cache=each) for each in (foreign, short, long, None, "not a cache")]
    (job,) = plan_jobs(requests, store)
    assert (job.num_cached, job.num_uncached) == (3, 1)
    assert job.last is not None and job.last.stored is not None and long.last.stored is not None
    assert torch.equal(job.last.stored.keys, long.last.stored.keys[:, :, :, :3])


def test_a_cache_that_shares_nothing_is_no_cache() -> None:
    store = Store(TINY)
    (job,) = plan_jobs([request([5, 6], cache=context(store, [1, 2]))], store)
    assert job.last is None


# rounds


def shared(count: int, length: int, first: int = 0) -> list[Job]:
    """`count` contexts whose first `length` tokens are the same, and the next is not."""
    return [Job((*range(first, first + length), 1000 + number, 1)) for number in range(count)]


def test_a_common_beginning_is_a_job_of_an_earlier_round() -> None:
    jobs = shared(3, 50)
    first, second = rounds(jobs)
    assert [job.token_ids for job in first] == [tuple(range(50))]
    assert second == jobs
    assert all(job.beginning is first[0] for job in jobs)


def test_a_short_beginning_is_not_worth_a_pass() -> None:
    # Two jobs save the 63 tokens once; 64 are worth it.
    assert len(rounds(shared(2, 63))) == 1
    assert len(rounds(shared(2, 64))) == 2


def test_what_is_kept_saves_nothing() -> None:
    jobs = shared(3, 100)
    for job in jobs:
        job.last = segment(None, list(range(100)))
    assert rounds(jobs) == [jobs]
    # The beginning goes on behind the deepest cache: the two others save 40 tokens each.
    jobs[0].last = segment(None, list(range(60)))
    jobs[1].last = jobs[2].last = None
    first, _ = rounds(jobs)
    assert [(job.token_ids, job.num_cached) for job in first] == [(tuple(range(100)), 60)]


def test_beginnings_of_beginnings() -> None:
    # Two trees of four with 100 tokens each, of which 70 are common to both: 3 * 30 and 3 * 30 saved in the trees,
    # 7 * 70 by all; the trees alone save 3 * 100 each, which is more, and their beginnings then share the 70.
    common = list(range(70))
    jobs = [Job((*common, *range(tree, tree + 30), 900 + n)) for tree in (200, 300) for n in range(4)]
    waves = rounds(jobs)
    assert [[len(job.token_ids) for job in wave] for wave in waves] == [[70], [100, 100], [101] * 8]
    assert waves[1][0].beginning is waves[0][0]


def test_a_context_that_another_one_begins_with_keeps_its_last_token() -> None:
    long = Job(tuple(range(200)))
    short = Job(tuple(range(100)))
    first, _ = rounds([long, short])
    assert [len(job.token_ids) for job in first] == [99]


# blocks


def test_blocks_hold_similar_lengths_and_a_bounded_number_of_tokens() -> None:
    jobs = [Job(tuple(range(length))) for length in (3, 100, 60, 49, 20, 1)]
    # 49 is less than half of 100; 20 is less than half of 49; 3 and 1 are short, but 20 is not.
    assert lengths(list(blocks(jobs, 10_000))) == [[100, 60], [49], [20], [3, 1]]
    # Two rows of 100 columns would be 200 tokens, two of 60 are 120.
    assert lengths(list(blocks(jobs, 150))) == [[100], [60, 49], [20], [3, 1]]
    # A job larger than the limit still gets its block.
    assert lengths(list(blocks(jobs, 1))) == [[100], [60], [49], [20], [3], [1]]
    assert lengths(list(blocks([Job((1,) * 16), Job((1,))], 10_000))) == [[16, 1]]


def test_a_block_holds_a_bounded_number_of_columns_with_what_is_kept() -> None:
    jobs = [Job(tuple(range(40)), last=segment(None, list(range(38)))) for _ in range(3)]
    assert lengths(list(blocks(jobs, 1000, 80))) == [[2, 2], [2]]
    assert lengths(list(blocks(jobs, 1000, 10))) == [[2], [2], [2]]


# block_inputs and place


def test_block_inputs_by_hand() -> None:
    # Two new columns of three: row 0 computes tokens 8 and 9 behind a cached 7, row 1 is one token and padding.
    inputs = block_inputs([(7, 8, 9), (5,)], 2, torch.float32, CPU)
    assert inputs.tokens.tolist() == [[8, 9], [0, 5]]
    assert inputs.positions.tolist() == [[1, 2], [0, 0]]
    assert inputs.mask is not None
    assert inputs.mask[0, 0].tolist() == [[0, 0, MIN], [0, 0, 0]]
    # The padding query sees itself only; the real one does not see padding.
    assert inputs.mask[1, 0].tolist() == [[MIN, 0, MIN], [MIN, MIN, 0]]


def test_positions_count_what_is_not_in_the_columns() -> None:
    inputs = block_inputs([(8, 9), (5,)], 1, torch.float32, CPU, [10, 20])
    assert inputs.positions.tolist() == [[11], [20]]


def test_equal_lengths_without_a_cache_need_no_mask() -> None:
    assert block_inputs([(1, 2), (3, 4)], 2, torch.float32, CPU).mask is None
    assert block_inputs([(1, 2), (3, 4)], 1, torch.float32, CPU).mask is not None


def test_what_is_kept_is_placed_before_what_is_missing() -> None:
    last = segment(segment(None, [1, 2]), [3, 4])
    buffer = KVBuffer(torch.full((1, 1, 1, 7, 1), 99.0), torch.full((1, 1, 1, 7, 1), 99.0))
    place(Job((1, 2, 3, 4, 5, 6), last=last), buffer, 0, 0)
    # Padding is cleared, the two missing columns are left as they were.
    assert numbered(buffer.keys) == [0, 1, 2, 3, 4, 99, 99]
    place(Job((1, 2, 3, 4, 5, 6), last=last), buffer, 0, 3)
    assert numbered(buffer.values) == [0, 0, 0, 0, -4, 99, 99]
