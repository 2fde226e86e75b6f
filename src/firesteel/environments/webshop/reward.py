"""The reward of a purchase, as WebShop's paper and its public code compute it (Yao et al., 2022, section 3).

    r = r_type * (matched attributes + matched options + [price <= bound]) / (attributes + options + 1)

Texts match when the token set ratio of thefuzz, rounded to a whole number, is above 85.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from firesteel.environments.webshop.catalogue import Catalogue, Goal, Product
from firesteel.errors import MissingDependency

INSTALL = "pip install 'firesteel[webshop]'"
MATCH_ABOVE = 85
SPACY_MODEL = "en_core_web_sm"

COLORS = (
    "alabaster", "apricot", "aqua", "ash", "asphalt", "azure", "banana", "beige", "black", "blue", "blush",
    "bordeaux", "bronze", "brown", "burgundy", "camel", "camo", "caramel", "champagne", "charcoal", "cheetah",
    "chestnut", "chocolate", "christmas", "coffee", "cognac", "copper", "coral", "cranberry", "cream",
    "crystal", "dark", "denim", "eggplant", "elephant", "espresso", "fuchsia", "gold", "granite", "grape",
    "graphite", "grass", "gray", "green", "grey", "heather", "indigo", "ivory", "ivy", "khaki", "lavender",
    "lemon", "leopard", "light", "lilac", "lime", "magenta", "maroon", "mauve", "merlot", "midnight", "mint",
    "mocha", "multicolor", "mushroom", "mustard", "natural", "navy", "nude", "olive", "orange", "peach",
    "pewter", "pink", "plum", "purple", "rainbow", "red", "rose", "royal", "rust", "sand", "sapphire",
    "seashell", "silver", "skull", "slate", "steel", "stone", "stonewash", "sunflower", "tan", "taupe", "teal",
    "tiger", "turquoise", "violet", "walnut", "wheat", "white", "wine", "yellow",
)  # fmt: skip
"""Option values are compared by the first of these that they contain, so "navy blue" and "sky blue" match."""

_DROPPED = dict.fromkeys(range(128, 256))
"""thefuzz takes these characters out before it compares, and no others beyond ASCII."""

Nouns = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Purchase:
    """What a purchase earns, and why. `total` is from 0 to 1; `type_factor` is 1, 0.5, 0.1 or 0."""

    total: float
    type_factor: float
    matched_attributes: int
    matched_options: int
    is_price_right: bool


def purchase_reward(product: Product, goal: Goal, options: Sequence[str], nouns: Nouns) -> Purchase:
    """The reward for buying `product` with the chosen option values. `nouns` finds the nouns of a title."""
    attributes = sum(has_attribute(product, wanted) for wanted in goal.attributes)
    chosen = sum(any(options_match(value, wanted) for value in options) for wanted in goal.options)
    is_price_right = product.price <= goal.price_upper
    factor = type_factor(product, goal, nouns)
    share = (attributes + chosen + is_price_right) / (len(goal.attributes) + len(goal.options) + 1)
    return Purchase(factor * share, factor, attributes, chosen, is_price_right)


def type_factor(product: Product, goal: Goal, nouns: Nouns) -> float:
    """r_type: 0 if the titles share no noun, 0.1 if less than a tenth of the goal's nouns.

    Otherwise 1 if the queries are equal, two levels of the categories are shared, or more than a fifth of the nouns;
    0.5 if none of that holds. A goal's title without nouns counts as one fifth shared.
    """
    wanted = nouns(goal.name)
    overlap = len(set(nouns(product.title)) & set(wanted)) / len(wanted) if wanted else 0.2
    if overlap == 0:
        return 0.0
    if overlap < 0.1:
        return 0.1
    is_same = product.query == goal.query or overlap > 0.2
    return 1.0 if is_same or len(_levels(product.product_category) & _levels(goal.product_category)) >= 2 else 0.5


def _levels(category: str) -> set[str]:
    return {level.strip() for level in category.split("\u203a")}


def has_attribute(product: Product, wanted: str) -> bool:
    """Whether an attribute matches one of the product's, or is written in its title, bullet points or description."""
    if any(texts_match(attribute, wanted) for attribute in product.attributes):
        return True
    return any(wanted in text.lower() for text in (product.title, " ".join(product.bullets), product.description))


def options_match(value: str, wanted: str) -> bool:
    """Whether two option values match once each is reduced to the first color that it contains."""
    return texts_match(reduce_color(value), reduce_color(wanted))


@lru_cache(maxsize=65_536)
def reduce_color(value: str) -> str:
    """The first of `COLORS` that is a part of the text, or else the text."""
    return next((color for color in COLORS if color in value), value)


@lru_cache(maxsize=262_144)
def texts_match(one: str, other: str) -> bool:
    """Whether thefuzz's token set ratio, from 0 to 100 and rounded, is above `MATCH_ABOVE`.

    Computed by rapidfuzz, which thefuzz itself uses since its version 0.20. Differs from the original in seldom cases:
    it pins version 0.19, whose ratio is that of difflib.
    """
    fuzz, utils = _rapidfuzz()
    one, other = one.translate(_DROPPED), other.translate(_DROPPED)
    return round(fuzz.token_set_ratio(one, other, processor=utils.default_process)) > MATCH_ABOVE


@lru_cache(maxsize=1)
def _rapidfuzz() -> tuple[Any, Any]:
    try:
        from rapidfuzz import fuzz, utils
    except ImportError as error:
        raise MissingDependency(f"webshop compares texts by rapidfuzz ({error}); run {INSTALL}") from error
    return fuzz, utils


def nouns_of(catalogue: Catalogue) -> Nouns:
    """How the nouns of this catalogue's titles are found: by its own list, by spaCy, or all words."""
    known = catalogue.nouns
    if known is None:
        return tagged_nouns()
    return lambda title: [word for word in words(title) if word in known]


@lru_cache(maxsize=1)
def tagged_nouns() -> Nouns:
    """The nouns of a title by spaCy's small English model, as the original finds them.

    Where spaCy or the model is missing all words count, which changes `type_factor` a little; a warning says so once.
    """
    try:
        import spacy

        tagger = spacy.load(SPACY_MODEL, exclude=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        message = (
            f"webshop takes all words of a title for nouns, since spaCy cannot find them ({error}); rewards differ "
            f"slightly from the original's; pip install spacy && python -m spacy download {SPACY_MODEL}"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return words

    @lru_cache(maxsize=65_536)
    def nouns(title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in tagger(title) if token.pos_ in ("NOUN", "PROPN"))

    return nouns


@lru_cache(maxsize=65_536)
def words(title: str) -> tuple[str, ...]:
    """The words and numbers of a text, in lower case."""
    return tuple(re.findall(r"\w+", title.lower()))
