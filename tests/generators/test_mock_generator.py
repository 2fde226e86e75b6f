from __future__ import annotations

import math

import pytest
from tiny_models import request

from firesteel.errors import ConfigError
from firesteel.generators.mock import MockGenerator


def test_a_function_answers_with_what_it_sees() -> None:
    generator = MockGenerator(lambda asked, rng: [len(asked.token_ids), int(rng.integers(5))], vocab_size=10)
    one, other = generator.generate([request([1, 2, 3], 4), request([1], 4)])
    assert (one.token_ids[0], other.token_ids[0]) == (3, 1)
    assert one.token_ids[1] == other.token_ids[1]
    assert one.finish_reason == "stop"
    assert one.cache is None


def test_every_token_has_the_values_of_a_uniform_policy() -> None:
    (completion,) = MockGenerator([[1, 2]], vocab_size=8).generate([request([0])])
    assert completion.logprobs == completion.sampling_logprobs == [-math.log(8)] * 2
    assert completion.entropies == [math.log(8)] * 2
    (greedy,) = MockGenerator([[1, 2]], vocab_size=8).generate([request([0], temperature=0.0)])
    assert greedy.sampling_logprobs == [0.0, 0.0]
    assert greedy.logprobs == [-math.log(8)] * 2


def test_the_seed_draws_one_of_the_replies() -> None:
    generator = MockGenerator([[1], [2], [3]])
    drawn = [completion.token_ids[0] for completion in generator.generate([request([0], seed) for seed in range(60)])]
    assert set(drawn) == {1, 2, 3}
    assert drawn == [generator.generate([request([0], seed)])[0].token_ids[0] for seed in range(60)]


def test_a_reply_that_is_too_long_is_cut() -> None:
    generator = MockGenerator([[1, 2, 3]])
    whole, cut = generator.generate([request([0], new=3), request([0], new=2)])
    assert (whole.token_ids, whole.finish_reason) == ([1, 2, 3], "stop")
    assert (cut.token_ids, cut.finish_reason) == ([1, 2], "length")


def test_random_replies_end_at_the_end_token() -> None:
    generator = MockGenerator(vocab_size=4, end_token_id=3)
    completions = generator.generate([request([0], seed, 6) for seed in range(50)])
    for completion in completions:
        assert 3 not in completion.token_ids[:-1]
        ended = completion.token_ids[-1] == 3
        assert completion.finish_reason == ("stop" if ended else "length")
        assert ended or len(completion.token_ids) == 6
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}


def test_version_weights_and_requests_are_kept() -> None:
    generator = MockGenerator()
    asked = request([0])
    generator.generate([asked])
    generator.load_weights({"w": 1}, version=5)
    assert generator.generate([asked])[0].policy_version == generator.version == 5
    assert generator.weights == {"w": 1}
    assert generator.requests == [asked, asked]


def test_impossible_replies_are_named() -> None:
    with pytest.raises(ConfigError, match="a reply holds token 9; give at least one token, all from 0 to 7"):
        MockGenerator([[1, 9]], vocab_size=8).generate([request([0])])
    with pytest.raises(ConfigError, match="a reply is empty"):
        MockGenerator([[]]).generate([request([0])])
    with pytest.raises(ConfigError, match="the list of replies is empty"):
        MockGenerator([])
    with pytest.raises(ConfigError, match="vocab_size must be at least 1"):
        MockGenerator(vocab_size=0)
