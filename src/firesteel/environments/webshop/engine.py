"""The shop: pages, what can be clicked on them, and what an action leads to.

A `State` is a value. `act` returns a new one, so that a snapshot is the state itself and a fork shares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from firesteel.environments.webshop.catalogue import Catalogue, Goal, Product
from firesteel.environments.webshop.search import SearchIndex

SEARCH, RESULTS, ITEM, DONE = "search", "results", "item", "done"
DESCRIPTION, FEATURES, REVIEWS, ATTRIBUTES = "description", "features", "reviews", "attributes"
SUB_PAGES = (DESCRIPTION, FEATURES, REVIEWS, ATTRIBUTES)
BACK, PREVIOUS, NEXT, BUY = "back to search", "< prev", "next >", "buy now"
NUM_RESULTS = 50

_ACTION = re.compile(r"(search|click)\[(.+)\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class State:
    """Where the agent is. Products are numbers of the catalogue, result pages count from 1.

    `chosen` has the option values chosen so far, by group. `clicked` are the products opened since the last return to
    the search page, as result pages mark them. `seen` has each (page, product) that was shown in the episode and
    `searched` each query; no page depends on these two, they are the expert's memory.
    """

    page: str = SEARCH
    query: str = ""
    results: tuple[int, ...] = ()
    number: int = 1
    product: int = -1
    chosen: tuple[tuple[str, str], ...] = ()
    clicked: frozenset[int] = frozenset()
    seen: frozenset[tuple[str, int]] = frozenset()
    searched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shop:
    """A catalogue with its search engine. `page_size` products stand on one result page."""

    catalogue: Catalogue
    index: SearchIndex
    page_size: int = 10
    show_attributes: bool = False

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Each product's number by its asin in lower case, as actions name it."""
        return {product.asin.lower(): number for number, product in enumerate(self.catalogue.products)}

    def product(self, state: State) -> Product:
        """The product whose page is open."""
        return self.catalogue.products[state.product]

    def listed(self, state: State) -> tuple[int, ...]:
        """The products on the current result page."""
        first = (state.number - 1) * self.page_size
        return state.results[first : first + self.page_size]

    def num_pages(self, state: State) -> int:
        """How many result pages there are, at least one."""
        return max(1, -(-len(state.results) // self.page_size))

    def sub_pages(self) -> tuple[str, ...]:
        """The pages that an item page leads to."""
        return SUB_PAGES if self.show_attributes else SUB_PAGES[:-1]


def clickable(shop: Shop, state: State) -> tuple[str, ...]:
    """What `click[...]` understands on this page, in the order of the page."""
    if state.page == SEARCH or state.page == DONE:
        return ()
    if state.page == RESULTS:
        products = (shop.catalogue.products[number].asin.lower() for number in shop.listed(state))
        return (BACK, *_turns(shop, state), *products)
    if state.page != ITEM:
        return (BACK, PREVIOUS)
    values = (value for _, values in shop.product(state).options for value in values)
    return tuple(dict.fromkeys((BACK, PREVIOUS, *values, *shop.sub_pages(), BUY)))


def _turns(shop: Shop, state: State) -> Iterator[str]:
    if state.number > 1:
        yield PREVIOUS
    if state.number < shop.num_pages(state):
        yield NEXT


def suggested_searches(goal: Goal) -> tuple[str, ...]:
    """Queries made of words that the instruction says itself: attributes and type, and the type alone."""
    said = goal.instruction.lower()
    attributes = [attribute for attribute in goal.attributes if attribute in said]
    kind = [goal.query] if goal.query in said else []
    queries = (" ".join([*attributes, *kind]), *kind)
    return tuple(dict.fromkeys(query for query in queries if query)) or (said,)


def admissible_actions(shop: Shop, state: State, goal: Goal) -> tuple[str, ...]:
    """The clicks of this page; on the search page some searches out of all that are possible."""
    if state.page == SEARCH:
        return tuple(f"search[{query}]" for query in suggested_searches(goal))
    return tuple(f"click[{target}]" for target in clickable(shop, state))


def act(shop: Shop, state: State, action: str) -> State | None:
    """The state that an action leads to, or None where it means nothing here.

    As in the original, `search[...]` is understood on every page, and so is no click on what the page does not show.
    """
    match = _ACTION.fullmatch(action.strip().lower())
    if match is None or state.page == DONE:
        return None
    verb, target = match[1], " ".join(match[2].split())
    if verb == "search":
        return _search(shop, state, target) if target else None
    if target not in clickable(shop, state):
        return None
    if target == BACK:
        return State(seen=state.seen, searched=state.searched)
    if state.page == RESULTS:
        return _click_on_results(shop, state, target)
    return _click_on_item(shop, state, target)


def _search(shop: Shop, state: State, query: str) -> State:
    """The first page of results; options chosen before are forgotten."""
    results = shop.index.top(query, NUM_RESULTS)
    searched = (*state.searched, query)
    return State(RESULTS, query, results, clicked=state.clicked, seen=state.seen, searched=searched)


def _click_on_results(shop: Shop, state: State, target: str) -> State:
    if target in (PREVIOUS, NEXT):
        return replace(state, number=state.number + (1 if target == NEXT else -1))
    number = shop.numbers[target]
    opened = replace(state, page=ITEM, product=number, chosen=(), clicked=state.clicked | {number})
    return _shown(opened)


def _click_on_item(shop: Shop, state: State, target: str) -> State:
    """A click on an item page or on one of its sub-pages, from which the only way on is back."""
    if target == PREVIOUS:
        is_item = state.page == ITEM
        return replace(state, page=RESULTS, product=-1, chosen=()) if is_item else replace(state, page=ITEM)
    if target == BUY:
        return replace(state, page=DONE)
    if target in shop.sub_pages():
        return _shown(replace(state, page=target))
    # Where two groups have the same value, the later one gets it, as in the original.
    group = [name for name, values in shop.product(state).options if target in values][-1]
    return replace(state, chosen=tuple({**dict(state.chosen), group: target}.items()))


def _shown(state: State) -> State:
    return replace(state, seen=state.seen | {(state.page, state.product)})
