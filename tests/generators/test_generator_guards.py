"""What the in-process generator refuses by name: calls inside calls, weights that diverged, values of a wrong type."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, build, greedy, prompt, request

from firesteel.errors import ConfigError, ModelError
from firesteel.generators.network import Network
from firesteel.generators.sampling import MIN_TEMPERATURE, Sampler, check_sampling, inverse_cdf
from firesteel.generators.torch import TorchGenerator
from firesteel.types import Completion, Request, SamplingParams


@pytest.fixture
def generator() -> TorchGenerator:
    return TorchGenerator(build(), end_token_ids=(VOCABULARY,))


# One call at a time


@pytest.mark.parametrize("inner", ["generate", "stream", "release", "load_weights"])
def test_a_call_inside_a_call_is_refused(generator: TorchGenerator, inner: str) -> None:
    calls: dict[str, Any] = {
        "generate": lambda: generator.generate([greedy(prompt(5))]),
        "stream": lambda: generator.stream([greedy(prompt(5))], lambda number, completion: ()),
        "release": generator.release,
        "load_weights": lambda: generator.load_weights(dict(generator.model.named_parameters()), version=4),
    }

    def follow(number: int, completion: Completion) -> Sequence[Request]:
        calls[inner]()
        return ()

    (alone,) = generator.generate([greedy(prompt(8))])
    with pytest.raises(ConfigError, match="already generating"):
        generator.stream([greedy(prompt(8)), greedy(prompt(9), 30)], follow)
    assert generator.version == 0
    (again,) = generator.generate([greedy(prompt(8))])
    assert again.token_ids == alone.token_ids
    calls[inner]()


def test_a_call_from_another_thread_is_refused(generator: TorchGenerator) -> None:
    found: list[Exception] = []

    def call() -> None:
        try:
            generator.generate([greedy(prompt(5))])
        except ConfigError as error:
            found.append(error)

    def follow(number: int, completion: Completion) -> Sequence[Request]:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return ()

    generator.stream([greedy(prompt(8))], follow)
    assert "already generating" in str(found[0])


# Weights that diverged


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_name_the_request_and_the_version(temperature: float, value: float) -> None:
    model: Any = build()
    generator = TorchGenerator(model, end_token_ids=(VOCABULARY,))
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    weights["model.layers.0.mlp.up_proj.weight"].fill_(value)
    generator.load_weights(weights, version=7)
    with pytest.raises(ModelError, match=r"request 0: the logits of its token 0 under policy version 7 .* checkpoint"):
        generator.generate([request(prompt(5), temperature=temperature)])
    generator.load_weights(dict(build().named_parameters()), version=8)
    assert len(generator.generate([request(prompt(5), temperature=temperature)])[0].token_ids) == 12


def test_a_model_of_nan_is_named_at_once() -> None:
    model: Any = build()
    model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(ModelError, match="logits are NaN; the weights diverged"):
        Network(model)


def test_a_draw_from_nan_is_a_token() -> None:
    row = torch.full((2, 5), math.nan)
    assert inverse_cdf(row, torch.tensor([0.0, 0.9], dtype=torch.float64)).tolist() == [4, 4]


def test_temperatures_that_overflow_are_refused_and_the_least_one_does_not() -> None:
    for temperature in (1e-46, 1e-39, MIN_TEMPERATURE / 2):
        with pytest.raises(ConfigError, match=r"request 4: temperature must be 0 \(greedy\) or at least 1e-06"):
            check_sampling(SamplingParams(1, temperature=temperature), "request 4")
    least = SamplingParams(1, temperature=MIN_TEMPERATURE)
    check_sampling(least, "request 4")
    draw = Sampler([least], torch.device("cpu")).draw(torch.tensor([[-1e5, 3e4, 2.9e4]]), [0.999])
    assert (draw.tokens.tolist(), draw.sampling_logprobs.tolist()) == ([1], [0.0])


# Wrong types


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_new_tokens": None}, "max_new_tokens must be an integer"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer"),
        ({"max_new_tokens": True}, "max_new_tokens must be an integer"),
        ({"temperature": None}, "temperature must be a number"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"top_k": None}, "top_k must be an integer"),
        ({"top_k": 1.5}, "top_k must be an integer"),
        ({"top_k": 10**20}, r"top_k must be 0 \(off\) or more, and below"),
        ({"top_p": None}, "top_p must be a number"),
        ({"stop": "abc"}, "stop must be a tuple of strings"),
        ({"stop": None}, "stop must be a tuple of strings"),
        ({"stop": (b"a",)}, "stop must be a tuple of strings"),
    ],
)
def test_settings_of_a_wrong_type_are_named(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"request 4: {problem}"):
        check_sampling(SamplingParams(**{"max_new_tokens": 3, **settings}), "request 4")


def test_requests_of_a_wrong_type_are_named(generator: TorchGenerator) -> None:
    for token_ids, kind in (
        ((1.5, 2.0), "float"),
        ("ab", "str"),
        (torch.tensor([1, 2]), "Tensor"),
        ([1, None], "None"),
    ):
        wrong: Any = token_ids
        with pytest.raises(ConfigError, match=f"request 0 has token ids of type .*{kind}"):
            generator.generate([greedy(wrong)])
    for seed in (None, 1.5, "1"):
        wrong = seed
        with pytest.raises(ConfigError, match=r"request 0: seed must be an integer; got"):
            generator.generate([Request([1, 2], wrong, SamplingParams(2))])


def test_numbers_of_numpy_are_integers(generator: TorchGenerator) -> None:
    import numpy as np

    plain, other = generator.generate(
        [
            Request([3, 4, 5], 6, SamplingParams(4, top_k=5)),
            Request(np.array([3, 4, 5]), np.int64(6), SamplingParams(np.int64(4), np.float32(1), np.int64(5))),  # type: ignore[arg-type]
        ]
    )
    assert plain.token_ids == other.token_ids


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_batch": "4"}, "max_batch must be an integer; got '4'"),
        ({"max_batch": 1.5}, "max_batch must be an integer; got 1.5"),
        ({"max_cache_bytes": 1e9}, "max_cache_bytes must be an integer"),
        ({"end_token_ids": 0}, "end_token_ids must be a sequence of integers"),
        ({"end_token_ids": ["a"]}, "end_token_ids must be a sequence of integers"),
        ({"device": "foo"}, "device must name one that torch knows, .*; got 'foo'"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"TorchGenerator: {problem}"):
        TorchGenerator(build(), **{"end_token_ids": (0,), **settings})


def test_weights_of_a_wrong_type_are_named(generator: TorchGenerator) -> None:
    version: Any = None
    with pytest.raises(ConfigError, match="version must be an integer; got None"):
        generator.load_weights(dict(generator.model.named_parameters()), version=version)
    lists = {name: parameter.tolist() for name, parameter in generator.model.named_parameters()}
    with pytest.raises(ModelError, match="values that are no tensors: model.embed_tokens.weight is a list"):
        generator.load_weights(lists, version=1)
    assert generator.version == 0
