from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tiny_models import VOCABULARY, build, prompt

from firesteel.errors import ModelError
from firesteel.generators import GENERATORS, generator_class
from firesteel.generators.check import check_generator
from firesteel.generators.mock import MockGenerator
from firesteel.types import Completion, Request

PROMPTS = [prompt(9), prompt(4, 1), prompt(9, 2)]
ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": lambda: {"model": build()},
    "mock": lambda: {"vocab_size": VOCABULARY, "end_token_id": 0},
}


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_keeps_the_contract(name: str) -> None:
    generator = generator_class(name)(**ARGUMENTS[name]())
    check_generator(generator, PROMPTS)
    assert generator.version == 0


def test_a_scripted_mock_passes_when_it_is_certain() -> None:
    with pytest.raises(ModelError, match="16 different seeds gave the same tokens"):
        check_generator(MockGenerator([[1, 2]]), PROMPTS)
    check_generator(MockGenerator([[0, 0]], vocab_size=1), PROMPTS)


class Broken(MockGenerator):
    """A mock whose completions are changed by `spoil` before they are returned."""

    def __init__(self, spoil: Callable[[list[Completion]], Sequence[Completion]]) -> None:
        super().__init__(vocab_size=VOCABULARY)
        self._spoil = spoil

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return list(self._spoil(super().generate(requests)))


def each(**changes: Any) -> Callable[[list[Completion]], list[Completion]]:
    return lambda completions: [dataclasses.replace(completion, **changes) for completion in completions]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda completions: completions[:-1], "3 requests gave 2 completions"),
        (lambda completions: completions[::-1], "alone: completion 0 has tokens"),
        (each(logprobs=[-1.0]), "1 logprobs for 8 tokens"),
        (each(entropies=[float("nan")] * 8), "entropies are not all finite"),
        (each(entropies=[-1.0] * 8), "entropies below 0"),
        (each(sampling_logprobs=[0.5] * 8), "sampling_logprobs above 0"),
        (each(finish_reason="eos"), "finish_reason 'eos'"),
        (each(token_ids=[1], logprobs=[-1.0], sampling_logprobs=[-1.0], entropies=[1.0]), "'length' after 1 of 8"),
        (each(policy_version=3), "policy_version 3, the generator's is 0"),
        (each(token_ids=[1] * 8), "16 different seeds gave the same tokens"),
        (each(sampling_logprobs=[-1.0] * 8), "at temperature 0 sampling_logprobs must be 0.0"),
    ],
)
def test_a_broken_contract_is_named(spoil: Callable[..., Sequence[Completion]], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        check_generator(Broken(spoil), PROMPTS)


def test_a_generator_that_depends_on_earlier_calls_is_found() -> None:
    calls = iter(range(1000))
    drifting = MockGenerator(lambda asked, rng: [next(calls) % VOCABULARY], vocab_size=VOCABULARY)
    with pytest.raises(ModelError, match="the same requests a second time: completion 0 has tokens"):
        check_generator(drifting, PROMPTS)


def test_what_is_no_generator_is_named() -> None:
    not_a_generator: Any = object()
    with pytest.raises(ModelError, match="object is no generator"):
        check_generator(not_a_generator, PROMPTS)
    with pytest.raises(ModelError, match="at least two different prompts"):
        check_generator(MockGenerator(), [[1], [1]])


def test_the_table_and_the_mock_do_not_import_torch() -> None:
    program = (
        "import sys, firesteel.generators, firesteel.generators.mock, firesteel.generators.check\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
