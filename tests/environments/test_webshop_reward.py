"""WebShop's reward, branch by branch, against values worked out by hand."""

from __future__ import annotations

import itertools
import warnings

import pytest
from webshop_rows import make_goal, make_product

from firesteel.environments.webshop.catalogue import Goal, Product
from firesteel.environments.webshop.reward import (
    COLORS,
    has_attribute,
    options_match,
    purchase_reward,
    reduce_color,
    tagged_nouns,
    texts_match,
    type_factor,
    words,
)
from firesteel.environments.webshop.vocabulary import CATEGORIES, OPTIONS

ELEVEN = "a b c d e f g h i j k"
"""As a title: eleven words, of which one is 0.0909."""


def foreign(**changes: str) -> Product:
    """A product whose query and category have nothing in common with the goal's."""
    return make_product(**{"query": "rugs", "product_category": "Home \u203a Floor", **changes})


def goal_named(name: str, **changes: str) -> Goal:
    return make_goal(name=name, **changes)


# The type


@pytest.mark.parametrize(
    ("title", "wanted", "factor"),
    [
        # No word is shared, one of eleven (0.09), one of ten (0.1), one of five (0.2), one of four (0.25).
        ("x y", ELEVEN, 0.0),
        ("a x", ELEVEN, 0.1),
        ("a x", "a b c d e f g h i j", 0.5),
        ("a x", "a b c d e", 0.5),
        ("a x", "a b c d", 1.0),
        # A goal's title without any noun counts as 0.2.
        ("a x", "", 0.5),
        # The denominator counts a word twice that is there twice: 1/5, not 1/4.
        ("a x", "a b c d d", 0.5),
        ("A", "a", 1.0),
    ],
)
def test_the_factor_of_the_title_alone(title: str, wanted: str, factor: float) -> None:
    assert type_factor(foreign(name=title), goal_named(wanted), words) == factor


@pytest.mark.parametrize(
    ("title", "wanted", "factor"),
    [("a x", "a b c d e", 1.0), ("a x", "", 1.0), ("a x", ELEVEN, 0.1), ("x y", "a", 0.0)],
)
@pytest.mark.parametrize("equal", ["query", "product_category"])
def test_query_or_category_lift_a_half_and_nothing_less(title: str, wanted: str, factor: float, equal: str) -> None:
    product = foreign(name=title, **{equal: getattr(make_goal(), equal)})
    assert type_factor(product, goal_named(wanted), words) == factor


@pytest.mark.parametrize(
    ("category", "factor"),
    [
        ("Kettles\u203aKitchen", 1.0),
        ("Kitchen \u203a Rugs \u203a Cooking", 1.0),
        ("Kitchen", 0.5),
        ("Kitchen \u203a Kitchen \u203a Rugs", 0.5),
        ("Kitchen > Cooking", 0.5),
    ],
)
def test_two_different_levels_of_the_category_in_any_order(category: str, factor: float) -> None:
    product = foreign(name="a x", product_category=category)
    assert type_factor(product, goal_named("a b c d e"), words) == factor


def test_only_nouns_of_the_title_count() -> None:
    nouns = {"fast red kettle": ["kettle"], "fast blue rug": ["rug"], "kettle": ["kettle"]}.__getitem__
    assert type_factor(foreign(name="fast blue rug"), goal_named("fast red kettle"), nouns) == 0.0
    assert type_factor(foreign(name="kettle"), goal_named("fast red kettle"), nouns) == 1.0


# Attributes, options, price


@pytest.mark.parametrize(
    ("changes", "wanted", "has"),
    [
        ({"attributes": ["quiet"]}, "quiet", True),
        # "essential oil" and "essential oils": 2 * 13 / 27 = 0.963.
        ({"attributes": ["essential oil"]}, "essential oils", True),
        ({"attributes": ["quiet fan"]}, "quiet", True),
        ({"attributes": ["loud"]}, "quiet", False),
        ({"attributes": [], "name": "A QUIET kettle"}, "quiet", True),
        ({"attributes": [], "small_description": ["So", "Quiet too"]}, "quiet", True),
        # Bullet points are joined by a space.
        ({"attributes": [], "small_description": ["So", "Quiet"]}, "so quiet", True),
        ({"attributes": [], "full_description": "It is quiet."}, "quiet", True),
        # The text is put in lower case, the attribute is not.
        ({"attributes": [], "full_description": "It is Quiet."}, "Quiet", False),
        ({"attributes": [], "full_description": "It is quiet."}, "loud", False),
    ],
)
def test_where_an_attribute_is_found(changes: dict, wanted: str, has: bool) -> None:
    assert has_attribute(make_product(**changes), wanted) is has


def test_texts_match_above_85_after_rounding() -> None:
    # Single tokens: twice the common letters over all letters. 12/14 = 85.7 is 86; 46/54 = 85.2 is 85.
    assert texts_match("aaaaaab", "aaaaaac")
    assert not texts_match("a" * 23 + "bbbb", "a" * 23 + "cccc")
    # Case, punctuation and the order of tokens do not count, and a subset of the tokens matches.
    assert texts_match("Pack (of 12)!", "12 of pack")
    assert texts_match("powder snow", "cool powder snow")
    assert not texts_match("", "red") and not texts_match("-", "-")
    # thefuzz drops U+0080 to U+00FF, and "caf" is left; without that it were 6/9.
    assert texts_match("caf\u00e9\u00e9\u00e9", "caf") and texts_match("caf", "caf\u00ea\u00eb\u00ec")
    assert not texts_match("caf\u0119\u0119\u0119", "caf")


def test_colors_are_reduced_to_the_first_in_the_list_that_is_a_part() -> None:
    assert (reduce_color("navy blue"), reduce_color("xl"), reduce_color("standard")) == ("blue", "xl", "tan")
    assert options_match("navy blue", "sky blue") and not options_match("navy", "blue")
    assert list(COLORS) == sorted(COLORS)


@pytest.mark.parametrize(
    ("attributes", "options", "chosen", "bound", "total", "parts"),
    [
        # (1 + 0 + 1) / (1 + 0 + 1), the bound is inclusive
        (("quiet",), (), (), 12.0, 1.0, (1, 0, True)),
        # (1 + 0 + 0) / 2
        (("quiet",), (), (), 11.99, 0.5, (1, 0, False)),
        # (1 + 1 + 1) / (2 + 1 + 1)
        (("quiet", "loud"), ("green",), ("green",), 20.0, 0.75, (1, 1, True)),
        # (1 + 1 + 0) / (2 + 2 + 1); what was chosen besides does not count
        (("quiet", "loud"), ("green", "xl"), ("sky green", "small"), 10.0, 0.4, (1, 1, False)),
        # no option chosen: (1 + 0 + 1) / (1 + 1 + 1)
        (("quiet",), ("green",), (), 20.0, 2 / 3, (1, 0, True)),
        # chosen although nothing is asked for
        (("quiet",), (), ("green",), 20.0, 1.0, (1, 0, True)),
        # the order of options is free, and one chosen value can serve two wishes: (1 + 2 + 1) / 4
        (("quiet",), ("dark green", "green"), ("green",), 20.0, 0.75, (1, 1, True)),
        (("quiet",), ("light green", "pale green"), ("pale green", "light"), 20.0, 1.0, (1, 2, True)),
    ],
)
def test_the_sum(attributes, options, chosen, bound, total, parts) -> None:
    goal = make_goal(attributes=attributes, options=options, price_upper=bound)
    purchase = purchase_reward(make_product(attributes=["quiet"]), goal, chosen, words)
    assert purchase.total == pytest.approx(total, abs=1e-15)
    assert (purchase.matched_attributes, purchase.matched_options, purchase.is_price_right) == parts


@pytest.mark.parametrize(("wanted", "factor"), [("Acme kettle", 1.0), ("acme b c d e", 0.5), (f"acme {ELEVEN}", 0.1)])
def test_the_type_multiplies_the_sum(wanted: str, factor: float) -> None:
    # (1 + 0 + 1) / (2 + 0 + 1) = 2/3 of it
    goal = goal_named(wanted, attributes=("quiet", "loud"))
    assert purchase_reward(foreign(), goal, (), words).total == pytest.approx(factor * 2 / 3, abs=1e-15)
    assert purchase_reward(foreign(name="rug"), goal, (), words).total == 0.0


# The generated shop's words


def test_no_word_of_the_generated_shop_is_mistaken_for_another() -> None:
    values = [value for group in OPTIONS.values() for value in group]
    assert [pair for pair in itertools.combinations(values, 2) if options_match(*pair)] == []
    for category in CATEGORIES.values():
        pairs = list(itertools.permutations(category.attributes, 2))
        assert len(category.attributes) == 8
        assert [pair for pair in pairs if texts_match(*pair) or pair[0] in pair[1]] == []


# Nouns


def test_without_spacy_all_words_count_and_that_is_said_once() -> None:
    try:
        import spacy
    except ImportError:
        tagged_nouns.cache_clear()
    else:
        pytest.skip(f"spaCy {spacy.__version__} is installed")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nouns = tagged_nouns()
        tagged_nouns()
    assert [str(warning.message).partition(",")[0] for warning in caught] == [
        "webshop takes all words of a title for nouns"
    ]
    assert nouns("A red Kettle, 2 pieces") == ("a", "red", "kettle", "2", "pieces")
