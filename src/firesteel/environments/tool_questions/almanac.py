"""An invented almanac: towns and words that no model has read about, the same on every machine.

What a question asks of it can only be looked up. Each entry belongs to one split.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

NUM_TOWNS = 240
NUM_WORDS = 240
SPLIT_OF = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2
"""The split of an entry, by its number modulo ten."""

_ONSETS = ("b", "br", "d", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "r", "s", "sk", "st", "t", "tr", "v", "w")
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ei", "ou")
_CODAS = ("l", "n", "r", "s", "th", "nd", "rk", "lm", "x", "")
_ENDINGS = ("stad", "wick", "mora", "ford", "haven", "berg", "ton", "vale", "dun", "mere")
_TRADES = ("rope", "glass", "salt", "clocks", "paper", "wool", "bells", "tiles", "honey", "lace", "nails", "dyes")
_THINGS = ("boat", "knife", "hat", "song", "loom", "lamp", "cart", "bread", "drum", "net", "coat", "ladder")
_SIZES = ("narrow", "heavy", "folded", "hollow", "striped", "crooked", "small", "three-cornered")
_USES = ("carrying salt", "mending sails", "weddings", "cold mornings", "counting sheep", "crossing marshes",
         "storing seed", "calling cattle", "market days", "climbing towers")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Town:
    """One place of the almanac."""

    name: str
    river: str
    founded: int
    inhabitants: int
    trade: str
    split: str

    @property
    def text(self) -> str:
        """Its entry. It holds no capital letter that stands alone."""
        return (
            f"The town of {self.name} lies on the river {self.river}. It was founded in {self.founded} and has "
            f"{self.inhabitants} inhabitants. Its people are known for their {self.trade}."
        )


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the almanac's glossary."""

    word: str
    definition: str
    split: str


def _syllable(rng: random.Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)


def _fresh(rng: random.Random, taken: set[str], ending: tuple[str, ...]) -> str:
    """A name that is not in `taken`, which it joins."""
    while True:
        name = _syllable(rng) + (rng.choice(ending) if ending else _syllable(rng))
        if 5 <= len(name) <= 12 and name not in taken:
            taken.add(name)
            return name


@cache
def towns() -> tuple[Town, ...]:
    """All towns."""
    rng, taken = random.Random("almanac/towns"), set[str]()
    rivers = [_fresh(rng, taken, ()).capitalize() for _ in range(30)]
    return tuple(
        Town(
            name=_fresh(rng, taken, _ENDINGS).capitalize(),
            river=rng.choice(rivers),
            founded=rng.randrange(1000, 1900),
            inhabitants=rng.randrange(2000, 99000),
            trade=rng.choice(_TRADES),
            split=SPLIT_OF[number % 10],
        )
        for number in range(NUM_TOWNS)
    )


@cache
def words() -> tuple[Word, ...]:
    """All words, each with a definition of its own."""
    rng, taken = random.Random("almanac/words"), set[str]()
    definitions = [f"a {size} {thing} for {use}" for size in _SIZES for thing in _THINGS for use in _USES]
    chosen = rng.sample(definitions, NUM_WORDS)
    return tuple(
        Word(_fresh(rng, taken, ()), definition, SPLIT_OF[number % 10]) for number, definition in enumerate(chosen)
    )


def corpus() -> list[str]:
    """What the tool `search` searches: every town, and half of the words."""
    entries = [town.text for town in towns()]
    return entries + [f"The word {word.word} means {word.definition}." for word in words()[::2]]


def glossary() -> dict[str, str]:
    """What the tool `dictionary` knows: every word, and one town in three."""
    entries = {word.word: word.definition for word in words()}
    return entries | {town.name: town.text for town in towns()[::3]}
