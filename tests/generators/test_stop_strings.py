"""Stop strings at the beginning of a response, where tokenizers drop the space that what they decode begins with."""

from __future__ import annotations

import pytest
from tiny_models import CHARACTERS, character_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from firesteel.generators.decode import StopStrings

WORDS = ["<eos>", "<unk>", "▁foo", "▁bar", "bar", "<0x0A>", "<0xC3>", "<0xA9>", "▁a", "a"]
IDS = {word: index for index, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Decodes as Llama 2 and Mistral do."""
    built = Tokenizer(models.BPE(vocab=IDS, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    built.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("stop", "before", "generated", "wanted"),
    [
        (" foo", "▁bar", ["▁foo"], True),
        (" foo", "<eos>", ["▁foo"], True),
        (" foo", "<0x0A>", ["▁foo"], True),
        ("foo", "▁bar", ["▁foo"], True),
        (" foo", "▁foo", ["bar"], False),  # what is in the context does not count
        ("foobar", "▁foo", ["bar"], False),
        (" bar", "▁foo", ["bar"], False),
        (" bar", "▁foo", ["a", "▁bar"], True),
        ("é", "▁foo", ["<0xC3>", "<0xA9>"], True),
        ("é", "<0xC3>", ["<0xA9>"], False),  # half of it is in the context
        (" a", "<0xC3>", ["<0xA9>", "▁a"], True),
        (" a", "▁foo", ["a"] * 40, False),
        (" a", "▁foo", [*["a"] * 40, "▁a"], True),
    ],
)
def test_a_space_at_the_beginning_counts(
    tokenizer: PreTrainedTokenizerFast, stop: str, before: str, generated: list[str], wanted: bool
) -> None:
    stops = StopStrings(tokenizer, (stop,), IDS[before])
    assert stops.are_met([IDS[word] for word in generated]) is wanted


def test_without_strings_nothing_is_decoded() -> None:
    assert not StopStrings(None, (), 0).are_met([1, 2])


def test_other_tokenizers_decode_the_response_alone() -> None:
    stops = StopStrings(character_tokenizer(), ("ab",), CHARACTERS.index("a"))
    assert not stops.are_met([CHARACTERS.index("b")])
    assert stops.are_met([CHARACTERS.index(each) for each in "cab"])
