"""The dictionary against WordNet's real files, where they are installed (Debian: wordnet-base)."""

from __future__ import annotations

import random

import pytest

from firesteel.tools.dictionary import Dictionary, find_wordnet

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    folder = find_wordnet()
    if folder is None:
        pytest.skip("WordNet's files are not installed (apt-get install wordnet-base)")
    return Dictionary(folder, num_senses=1)


@pytest.mark.parametrize(
    ("word", "beginning"),
    [
        ("entity", "entity (noun): that which is perceived or known or inferred to have its own distinct existence"),
        ("ice cream", "ice cream (noun): frozen dessert containing cream and sugar and flavoring"),
        ("zymotic", "zymotic (adj): of or relating to or causing fermentation"),
        ("a cappella", "a cappella (adj): sung without instrumental accompaniment"),
        ("qzx", "no entry for 'qzx'"),
    ],
)
def test_definitions(dictionary: Dictionary, word: str, beginning: str) -> None:
    assert dictionary.call(word).text.startswith(beginning)


def test_every_word_of_the_index_is_found(dictionary: Dictionary) -> None:
    folder = find_wordnet()
    assert folder is not None
    for part in ("noun", "verb", "adj", "adv"):
        lines = (folder / f"index.{part}").read_text(encoding="utf-8").splitlines()
        words = [line.split()[0].replace("_", " ") for line in lines if not line.startswith("  ")]
        for word in [words[0], words[-1], *random.Random(0).sample(words, 300)]:
            # longer phrases than the tool takes, and those that end in a dot or begin with an apostrophe, are rare
            if len(word) <= 80 and word == word.strip(" ?.\"'"):
                assert not dictionary.call(word).text.startswith("no entry"), word
