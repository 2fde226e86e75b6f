from __future__ import annotations

import random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    CHARACTERS,
    END,
    FAMILIES,
    VOCABULARY,
    build,
    character_tokenizer,
    greedy,
    largest_difference,
    plain_logprobs,
    prompt,
    request,
)

from firesteel.errors import ConfigError, ContextOverflow
from firesteel.generators import attention, llama, sharing
from firesteel.generators.torch import TorchGenerator
from firesteel.types import Completion

NEVER = (VOCABULARY,)
RAGGED = (17, 3, 9, 1)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build()


@pytest.fixture
def generator(model: torch.nn.Module) -> TorchGenerator:
    """Never stops by itself, so that lengths are known."""
    return TorchGenerator(model, end_token_ids=NEVER)


def assert_same(one: list[Completion], other: list[Completion], tolerance: float = 1e-5) -> None:
    assert [each.token_ids for each in one] == [each.token_ids for each in other]
    assert [each.finish_reason for each in one] == [each.finish_reason for each in other]
    for a, b in zip(one, other, strict=True):
        assert largest_difference(a.logprobs, b.logprobs) < tolerance
        assert largest_difference(a.entropies, b.entropies) < 10 * tolerance


# Greedy tokens and the model's own generate


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_up_to_the_first_near_tie(family: str) -> None:
    model: Any = build(family)
    prompts = [prompt(length, salt) for salt, length in enumerate(RAGGED)]
    completions = TorchGenerator(model).generate([greedy(each, 24) for each in prompts])
    compared = 0
    for token_ids, completion in zip(prompts, completions, strict=True):
        inputs = torch.tensor([token_ids])
        options = {"do_sample": False, "max_new_tokens": 24, "return_dict_in_generate": True, "output_scores": True}
        reference = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
        margins = [float(scores[0].topk(2).values.diff().abs()) for scores in reference.scores]
        decided = next((index for index, margin in enumerate(margins) if margin < 1e-4), len(margins))
        wanted = reference.sequences[0, len(token_ids) :].tolist()
        assert completion.token_ids[:decided] == wanted[:decided]
        if decided == len(margins):
            assert completion.token_ids == wanted
            assert completion.finish_reason == ("stop" if wanted[-1] == END else "length")
        compared += decided
    assert compared > 40


# Log-probabilities and the learner's forward pass


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [(family, torch.float32, 1e-5) for family in FAMILIES] + [("llama", torch.bfloat16, 3e-2)],
)
def test_logprobs_equal_a_right_padded_training_pass(family: str, dtype: torch.dtype, tolerance: float) -> None:
    model = build(family, initializer_range=0.1).to(dtype).train()
    prompts = [prompt(length, salt) for salt, length in enumerate(RAGGED)]
    requests = [request(each, seed, 20) for seed, each in enumerate(prompts)]
    completions = TorchGenerator(model, end_token_ids=NEVER).generate(requests)
    rows = [[*ids, *completion.token_ids] for ids, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    attention_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    inputs = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    positions = torch.arange(width).expand(len(rows), width)
    logits = model(input_ids=inputs, attention_mask=attention_mask, position_ids=positions).logits
    logprobs = logits.float().log_softmax(-1)
    for row, (ids, completion) in enumerate(zip(prompts, completions, strict=True)):
        columns = range(len(ids) - 1, len(ids) + 19)
        wanted = logprobs[row, list(columns), completion.token_ids].tolist()
        entropies = torch.special.entr(logprobs[row, list(columns)].exp()).sum(-1).tolist()
        assert largest_difference(completion.logprobs, wanted) < tolerance
        assert largest_difference(completion.entropies, entropies) < 10 * tolerance
        assert completion.sampling_logprobs == completion.logprobs
    # Training goes on as if nothing had happened: the graph is whole and the gradient finite.
    logprobs.sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


def test_tempered_and_truncated_sampling_reports_both_distributions(
    model: torch.nn.Module, generator: TorchGenerator
) -> None:
    sampling = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    (completion,) = generator.generate([request(prompt(6), 1, 10, **sampling)])
    assert largest_difference(completion.logprobs, plain_logprobs(model, prompt(6), completion)) < 1e-5
    row = torch.tensor([[*prompt(6), *completion.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=row).logits[0, 5:-1]
    for step, token in enumerate(completion.token_ids):
        top = (logits[step] / 0.7).softmax(-1).topk(5)
        of_top = (top.values / top.values.sum()).tolist()
        kept = next(count for count in range(1, 6) if sum(of_top[:count]) >= 0.9)
        position = top.indices.tolist().index(token)
        assert position < kept
        wanted = np.log(of_top[position] / sum(of_top[:kept]))
        assert completion.sampling_logprobs[step] == pytest.approx(wanted, abs=1e-4)


def test_sampled_tokens_follow_the_models_distribution() -> None:
    model = build(vocab_size=2, initializer_range=0.1, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    count = 4000
    token_ids = [0, 1, 1]
    completions = TorchGenerator(model, end_token_ids=(2,)).generate(
        [request(token_ids, seed, 1) for seed in range(count)]
    )
    with torch.no_grad():
        probability = float(model(input_ids=torch.tensor([token_ids])).logits[0, -1].softmax(-1)[1])
    seen = sum(completion.token_ids[0] for completion in completions)
    assert 0.05 < probability < 0.95
    chi_square = (seen - count * probability) ** 2 / (count * probability * (1 - probability))
    # One degree of freedom: a squared normal variable, two-sided at 0.001.
    assert chi_square < NormalDist().inv_cdf(1 - 0.0005) ** 2


# Seeds and batches


def test_a_request_gives_the_same_in_any_batch(generator: TorchGenerator, model: torch.nn.Module) -> None:
    requests = [request(prompt(3 + 5 * (seed % 4), seed), seed, 4 + 7 * (seed % 3)) for seed in range(13)]
    alone = [generator.generate([each])[0] for each in requests]
    assert_same(alone, generator.generate(requests))
    assert_same(alone[::-1], generator.generate(requests[::-1]))
    assert_same(alone, TorchGenerator(model, end_token_ids=NEVER, max_batch=3).generate(requests))
    assert_same(alone, TorchGenerator(model, end_token_ids=NEVER, max_prefill_tokens=1).generate(requests))
    assert len({tuple(each.token_ids[:4]) for each in alone}) > 10


def test_rows_that_go_on_after_others_ended_are_not_disturbed(generator: TorchGenerator) -> None:
    # 12, then 5, then 2 rows are active: the batch is made smaller twice.
    news = [2] * 7 + [6] * 3 + [30] * 2
    requests = [request(prompt(40 - 3 * row, row), row, new) for row, new in enumerate(news)]
    together = generator.generate(requests)
    assert [len(each.token_ids) for each in together] == news
    assert_same([generator.generate([each])[0] for each in requests], together)
    next_turn = [
        request([*each.token_ids, *done.token_ids, 7, 8], 99, 5, cache=done.cache)
        for each, done in zip(requests, together, strict=True)
    ]
    before = generator.stats["prefilled_tokens"]
    kept = generator.generate(next_turn)
    # Of each context only the last sampled token and the two new ones were not in the cache.
    assert generator.stats["prefilled_tokens"] - before == 3 * len(requests)
    assert_same(kept, generator.generate([request(each.token_ids, 99, 5) for each in next_turn]))


def test_the_batch_is_made_smaller_when_a_quarter_of_it_has_ended() -> None:
    model = build("gpt_neox")
    generator = TorchGenerator(model, end_token_ids=NEVER)
    num_rows: list[int] = []
    model.register_forward_pre_hook(lambda _, __, inputs: num_rows.append(len(inputs["input_ids"])), with_kwargs=True)
    news = [2] * 2 + [4] * 4 + [6] * 3 + [30] * 3
    generator.generate([request(prompt(5, row), row, new) for row, new in enumerate(news)])
    # The prefill; tokens 2 to 4 of all 12, of which 10 go on after 2; tokens 5 and 6 of six; 7 to 30 of three.
    assert num_rows == [12] + 3 * [12] + 2 * [6] + 24 * [3]


def test_another_seed_gives_other_tokens_and_no_global_state_is_used(generator: TorchGenerator) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    one, other = generator.generate([request(prompt(5), 1, 20), request(prompt(5), 2, 20)])
    assert one.token_ids != other.token_ids
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_no_requests_give_no_completions(generator: TorchGenerator) -> None:
    assert generator.generate([]) == []


# Kept keys and values


def test_keys_and_values_kept_over_turns_equal_a_new_prefill(generator: TorchGenerator) -> None:
    contexts = [prompt(length, salt) for salt, length in enumerate(RAGGED)]
    caches: list[Any] = [None] * len(contexts)
    for turn in range(3):
        requests = [request(ids, turn, 6, cache=caches[row]) for row, ids in enumerate(contexts)]
        before = dict(generator.stats)
        completions = generator.generate(requests)
        spent = {name: generator.stats[name] - before[name] for name in before}
        # After the first turn: the last sampled token of the turn before and the observation.
        new = sum(RAGGED) if turn == 0 else sum(1 + row + 1 for row in range(len(contexts)))
        assert spent == {
            "calls": 1,
            "prefilled_tokens": new,
            "reused_tokens": sum(map(len, contexts)) - new,
            "generated_tokens": 6 * len(contexts),
            "evicted_tokens": 0,
            "steps": 5,
            "row_steps": 5 * len(contexts),
        }
        assert_same(completions, generator.generate([request(each.token_ids, turn, 6) for each in requests]))
        caches = [completion.cache for completion in completions]
        contexts = [
            [*ids, *completion.token_ids, *prompt(row + 1, turn)]
            for row, (ids, completion) in enumerate(zip(contexts, completions, strict=True))
        ]


def test_identical_contexts_are_prefilled_once(generator: TorchGenerator) -> None:
    roots = [request(prompt(length, length), seed, 8) for length in (10, 4) for seed in range(4)]
    completions = generator.generate(roots)
    assert generator.stats["prefilled_tokens"] == 14
    assert generator.stats["reused_tokens"] == 3 * 14
    assert_same(completions, [generator.generate([each])[0] for each in roots])


def test_branches_share_one_cache(generator: TorchGenerator) -> None:
    (root,) = generator.generate([request(prompt(10), 0, 8)])
    context = [*prompt(10), *root.token_ids]
    before = generator.stats["prefilled_tokens"]
    # Three draws from the fork itself, and two other branches with observations of their own.
    forks = [request(context, seed, 5, cache=root.cache) for seed in (1, 2, 3)]
    forks += [request([*context, *prompt(length)], 4, 5, cache=root.cache) for length in (2, 3)]
    branches = generator.generate(forks)
    assert generator.stats["prefilled_tokens"] - before == 1 + (1 + 2) + (1 + 3)
    assert_same(branches, generator.generate([request(each.token_ids, each.seed, 5) for each in forks]))
    # The cache of the parent is as it was: a branch taken later gives the same again.
    assert_same(branches[:1], generator.generate(forks[:1]))


def test_of_a_cache_that_is_no_prefix_the_common_part_is_used(generator: TorchGenerator) -> None:
    (first,) = generator.generate([request(prompt(10), 0, 4)])
    edited = [*prompt(10)[:6], 30, 31, 32]
    before = generator.stats["prefilled_tokens"]
    kept = generator.generate([request(edited, 1, 6, cache=first.cache)])
    assert generator.stats["prefilled_tokens"] - before == 3
    assert_same(kept, generator.generate([request(edited, 1, 6)]))


def test_a_context_that_its_cache_covers_completely_computes_one_token(generator: TorchGenerator) -> None:
    (first,) = generator.generate([request(prompt(10), 0, 4)])
    before = generator.stats["prefilled_tokens"]
    kept = generator.generate([request(prompt(10), 0, 4, cache=first.cache)])
    assert generator.stats["prefilled_tokens"] - before == 1
    assert_same(kept, [first])


def test_the_cache_of_another_generator_is_ignored(generator: TorchGenerator) -> None:
    other = TorchGenerator(build(seed=1), end_token_ids=NEVER)
    (foreign,) = other.generate([request(prompt(10), 0, 4)])
    kept = generator.generate([request(prompt(10), 1, 4, cache=foreign.cache)])
    assert generator.stats["reused_tokens"] == 0
    assert_same(kept, generator.generate([request(prompt(10), 1, 4)]))


def test_release_frees_memory_and_makes_caches_invalid(generator: TorchGenerator) -> None:
    (first,) = generator.generate([request(prompt(10), 0, 4)])
    generator.release()
    assert first.cache.last.stored is None
    assert_same(generator.generate([request(prompt(10), 0, 4, cache=first.cache)]), [first])
    assert generator.stats["reused_tokens"] == 0


# Prefixes that rows share


def forked(generator: TorchGenerator, width: int) -> list[Any]:
    """Branches from one kept context: draws from the fork itself, and others behind observations of their own."""
    (root,) = generator.generate([request(prompt(60), 0, 8)])
    context = [*prompt(60), *root.token_ids]
    same = [request(context, seed, 9, cache=root.cache) for seed in range(width)]
    return same + [request([*context, *prompt(1 + row, row)], row, 9, cache=root.cache) for row in range(width)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi"])
def test_branches_that_attend_to_one_copy_of_their_prefix_equal_recomputation(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MIN_GAIN_TOKENS", 1)
    groups: list[int] = []
    attend = attention.attend_shared

    def counted(*arguments: Any) -> torch.Tensor:
        groups.append(len(arguments[5]))
        return attend(*arguments)

    monkeypatch.setattr(llama, "attend_shared", counted)
    model = build(family)
    generator = TorchGenerator(model, end_token_ids=NEVER)
    branches = forked(generator, 4)
    together = generator.generate(branches)
    alone = [
        TorchGenerator(model, end_token_ids=NEVER).generate([request(each.token_ids, each.seed, 9)])[0]
        for each in branches
    ]
    assert_same(together, alone)
    for each, completion in zip(branches, together, strict=True):
        wanted = plain_logprobs(model, each.token_ids, completion)
        assert largest_difference(completion.logprobs, wanted) < 1e-5
    # In phi every row has a copy.
    assert (max(groups, default=0) > 0) == (family != "phi")
    # What they kept serves the next turn.
    turn = [
        request([*each.token_ids, *done.token_ids, 5, 6], 3, 6, cache=done.cache)
        for each, done in zip(branches, together, strict=True)
    ]
    before = generator.stats["prefilled_tokens"]
    assert_same(generator.generate(turn), generator.generate([request(each.token_ids, 3, 6) for each in turn]))
    assert generator.stats["prefilled_tokens"] - before > 3 * len(turn)


def test_a_long_beginning_is_computed_once_without_a_cache(generator: TorchGenerator) -> None:
    requests = [request([*prompt(70), *prompt(5, row)], row, 6) for row in range(3)]
    together = generator.generate(requests)
    assert generator.stats["prefilled_tokens"] == 70 + 3 * 5
    assert generator.stats["reused_tokens"] == 2 * 70
    assert_same(together, [generator.generate([each])[0] for each in requests])


# Rows that join while others are decoded


def test_requests_that_join_get_what_they_get_alone(model: torch.nn.Module) -> None:
    generator = TorchGenerator(model, end_token_ids=NEVER, max_batch=3)
    first = [request(prompt(4 + 9 * row, row), row, 3 + 4 * row) for row in range(5)]
    asked, done = list(first), {}

    def follow(number: int, completion: Completion) -> list[Any]:
        done[number] = completion
        if number >= 12:
            return []
        # The next turn of the same episode, and for every third a branch beside it.
        context = [*asked[number].token_ids, *completion.token_ids, *prompt(2, number)]
        new = [request(context, number, 4, cache=completion.cache)]
        if number % 3 == 0:
            new.append(request(context, 100 + number, 9, cache=completion.cache))
        asked.extend(new)
        return new

    generator.stream(first, follow)
    assert sorted(done) == list(range(len(asked))) and len(asked) > 15
    fresh = TorchGenerator(model, end_token_ids=NEVER)
    alone = [fresh.generate([request(each.token_ids, each.seed, each.sampling.max_new_tokens)])[0] for each in asked]
    assert_same([done[number] for number in range(len(asked))], alone)


def test_a_freed_place_is_taken_at_once(generator: TorchGenerator, model: torch.nn.Module) -> None:
    # Three places; tokens 2 to 10 of nine rows of 10 tokens are 81 row steps: 27 full steps and none more.
    small = TorchGenerator(model, end_token_ids=NEVER, max_batch=3)
    small.generate([request(prompt(5, row), row, 10) for row in range(9)])
    assert (small.stats["steps"], small.stats["row_steps"]) == (27, 81)
    # Rows of 2, 6 and 10 tokens twice: as soon as the short one ends, another row begins in its place.
    mixed = TorchGenerator(model, end_token_ids=NEVER, max_batch=3)
    mixed.generate([request(prompt(5, row), row, new) for row, new in enumerate((2, 6, 10, 2, 6, 10))])
    assert mixed.stats["steps"] < 2 * 9


def test_what_is_polled_joins_and_none_ends_the_stream(generator: TorchGenerator) -> None:
    coming = [[request(prompt(5), 1, 6)], [], [request(prompt(7), 2, 3)]]
    done: dict[int, Completion] = {}

    def follow(number: int, completion: Completion) -> list[Any]:
        done[number] = completion
        return []

    generator.stream([], follow, lambda: coming.pop(0) if coming else [])
    assert_same([done[0], done[1]], generator.generate([request(prompt(5), 1, 6), request(prompt(7), 2, 3)]))


def test_an_error_in_between_leaves_the_generator_usable(generator: TorchGenerator) -> None:
    def follow(number: int, completion: Completion) -> list[Any]:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        generator.stream([request(prompt(5), 1, 2), request(prompt(5), 1, 9)], follow)
    assert len(generator.generate([request(prompt(5), 1, 4)])[0].token_ids) == 4


# How completions end


def test_the_end_token_is_part_of_the_completion() -> None:
    model = build()
    (free,) = TorchGenerator(model, end_token_ids=NEVER).generate([request(prompt(5), 3, 20)])
    end = free.token_ids[4]
    first = free.token_ids.index(end)
    (ended,) = TorchGenerator(model, end_token_ids=(end, 39)).generate([request(prompt(5), 3, 20)])
    assert ended.token_ids == free.token_ids[: first + 1]
    assert (ended.finish_reason, free.finish_reason) == ("stop", "length")
    assert len(ended.logprobs) == len(ended.sampling_logprobs) == len(ended.entropies) == first + 1


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    model = build()
    (free,) = TorchGenerator(model, end_token_ids=NEVER).generate([greedy(prompt(5), 1)])
    (ended,) = TorchGenerator(model, end_token_ids=free.token_ids).generate([greedy(prompt(5), 1)])
    assert (ended.token_ids, ended.finish_reason) == (free.token_ids, "stop")


def test_what_a_row_would_have_sampled_after_its_limit_does_not_count(model: torch.nn.Module) -> None:
    # Three rows are never made fewer, so that the short ones are computed to the end of the long one.
    requests = [request(prompt(5), 5, new) for new in (2, 20, 2)]
    free = TorchGenerator(model, end_token_ids=NEVER).generate(requests)
    unused = [token for token in range(VOCABULARY) if token not in free[1].token_ids]
    completions = TorchGenerator(model, end_token_ids=unused).generate(requests)
    assert_same(completions, free)
    assert [completion.finish_reason for completion in completions] == ["length"] * 3


def test_stop_strings_end_only_the_requests_that_have_them(model: torch.nn.Module) -> None:
    generator = TorchGenerator(model, character_tokenizer(), end_token_ids=NEVER)
    (free,) = generator.generate([request(prompt(5), 3, 30)])
    text = "".join(CHARACTERS[token] for token in free.token_ids)
    stop = text[11:14]
    wanted = text.index(stop) + 3
    requests = [
        request(prompt(5), 3, 30, stop=(stop,)),
        request(prompt(5), 3, 30, stop=("never in it", stop)),
        request(prompt(5), 3, 30),
        request(prompt(5), 3, 30, stop=("never in it",)),
    ]
    *stopped, same, unmet = generator.generate(requests)
    for completion in stopped:
        assert completion.token_ids == free.token_ids[:wanted]
        assert completion.finish_reason == "stop"
    assert same.token_ids == unmet.token_ids == free.token_ids
    assert unmet.finish_reason == "length"


# Requests that cannot be served


def test_context_overflow_names_the_request_and_the_limit(generator: TorchGenerator) -> None:
    assert generator.max_context == 128
    requests = [request(prompt(10), 0, 4), request(prompt(120), 0, 9)]
    with pytest.raises(ContextOverflow, match=r"request 1: 120 context tokens and max_new_tokens 9 exceed the 128"):
        generator.generate(requests)
    assert generator.stats["calls"] == 0
    (full,) = generator.generate([request(prompt(120), 0, 8)])
    assert len(full.token_ids) == 8


def test_max_context_can_be_lowered_but_not_raised(model: torch.nn.Module) -> None:
    assert TorchGenerator(model, max_context=50).max_context == 50
    assert TorchGenerator(model, max_context=5000).max_context == 128


def test_impossible_requests_are_named(generator: TorchGenerator) -> None:
    with pytest.raises(ConfigError, match="request 0 has no token ids"):
        generator.generate([request([])])
    with pytest.raises(ConfigError, match="request 1 has token ids from 3 to 40, but the model's vocabulary is 40"):
        generator.generate([request([1]), request([3, 40])])
    with pytest.raises(ConfigError, match="request 0: temperature"):
        generator.generate([request([1], temperature=-1.0)])
    with pytest.raises(ConfigError, match="request 0 has stop strings, which need a tokenizer"):
        generator.generate([request([1], stop=("a",))])
    with pytest.raises(ConfigError, match="max_batch must be at least 1"):
        TorchGenerator(generator.model, max_batch=0)
