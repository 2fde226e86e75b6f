"""The shop's expert: what to do next, from the goal and from the pages that were shown in the episode.

It is a function of the state, recomputed at every call, so it works after random actions and in forks. Of a product
it knows the title and the price once it is listed, the options once its page was open, and each sub-page once that was
read. It never looks at which product the goal was made from.
"""

from __future__ import annotations

from firesteel.environments.webshop.catalogue import Goal, Product
from firesteel.environments.webshop.engine import (
    BACK,
    BUY,
    DESCRIPTION,
    DONE,
    FEATURES,
    ITEM,
    NEXT,
    NUM_RESULTS,
    PREVIOUS,
    RESULTS,
    SEARCH,
    Shop,
    State,
    suggested_searches,
)
from firesteel.environments.webshop.pages import short_price
from firesteel.environments.webshop.reward import options_match, words
from firesteel.types import ExpertStep


def next_step(shop: Shop, goal: Goal, state: State) -> ExpertStep | None:
    """The expert's next step; None after a purchase, and where every search has led to nothing."""
    if state.page == SEARCH:
        query = _next_query(shop, goal, state)
        return None if query is None else ExpertStep(f"search[{query}]", False, f"find {goal.query or 'it'}")
    if state.page == RESULTS:
        return _choose(shop, goal, state)
    if state.page == ITEM:
        return _inspect(shop, goal, state)
    return None if state.page == DONE else _click(PREVIOUS, "that is read")


def _click(target: str, reason: str, explore: bool = False) -> ExpertStep:
    return ExpertStep(f"click[{target}]", explore, reason)


def _next_query(shop: Shop, goal: Goal, state: State) -> str | None:
    """A query that was not searched yet, else one whose results were not all found wrong."""
    queries = suggested_searches(goal)
    fresh = next((query for query in queries if query not in state.searched), None)
    return fresh or next((query for query in queries if _has_candidate(shop, goal, state, query)), None)


def _has_candidate(shop: Shop, goal: Goal, state: State, query: str) -> bool:
    found = shop.index.top(query, NUM_RESULTS)
    return any(not flaw(goal, shop.catalogue.products[number], number, state) for number in found)


def missing_attributes(goal: Goal, product: Product, number: int, state: State) -> list[str]:
    """The attributes asked for that nothing shown of the product says it has."""
    texts = [product.title]
    if (FEATURES, number) in state.seen:
        texts.append(" ".join(product.bullets))
    if (DESCRIPTION, number) in state.seen:
        texts.append(product.description)
    return [wanted for wanted in goal.attributes if not any(wanted in text.lower() for text in texts)]


def flaw(goal: Goal, product: Product, number: int, state: State) -> str:
    """What is wrong with a product as far as it was shown, in a few words; "" for nothing so far."""
    if product.lowest_price > goal.price_upper:
        return "it costs too much"
    if goal.query and not set(words(goal.query)) & set(words(product.title)):
        return f"no {goal.query}"
    if (ITEM, number) in state.seen:
        values = [value for _, values in product.options for value in values]
        absent = (wanted for wanted in goal.options if not any(options_match(value, wanted) for value in values))
        if option := next(absent, ""):
            return f"no {option} here"
    if {(FEATURES, number), (DESCRIPTION, number)} <= state.seen:
        missing = missing_attributes(goal, product, number, state)
        return f"it is not {missing[0]}" if missing else ""
    return ""


def _choose(shop: Shop, goal: Goal, state: State) -> ExpertStep | None:
    """On a result page: opens the product with the fewest missing attributes, the first of those.

    `explore` is True where that is a guess: another listed product may fit as well and something is missing.
    """
    candidates = []
    for number in shop.listed(state):
        product = shop.catalogue.products[number]
        if not flaw(goal, product, number, state):
            candidates.append((len(missing_attributes(goal, product, number, state)), number))
    if not candidates:
        return _go_on(shop, goal, state)
    fewest = min(num_missing for num_missing, _ in candidates)
    best = [number for num_missing, number in candidates if num_missing == fewest]
    product = shop.catalogue.products[best[0]]
    missing = missing_attributes(goal, product, best[0], state)
    found = [wanted for wanted in goal.attributes if wanted not in missing]
    reason = " ".join([*found, goal.query or "it", "for", short_price(product)])
    return _click(product.asin.lower(), reason, explore=bool(missing) and len(best) > 1)


def _go_on(shop: Shop, goal: Goal, state: State) -> ExpertStep | None:
    """On a result page where nothing fits: the next page, then another search, then nothing."""
    if state.number < shop.num_pages(state):
        return _click(NEXT, "none of these")
    return None if _next_query(shop, goal, state) is None else _click(BACK, "search again", explore=True)


def _inspect(shop: Shop, goal: Goal, state: State) -> ExpertStep:
    """On an item page: back if something is wrong, else what is missing, then the options, then the purchase."""
    product, number = shop.product(state), state.product
    if problem := flaw(goal, product, number, state):
        return _click(PREVIOUS, problem)
    missing = missing_attributes(goal, product, number, state)
    if missing:
        unread = [page for page in (FEATURES, DESCRIPTION) if (page, number) not in state.seen]
        return _click(unread[0], f"is it {missing[0]}", explore=len(unread) > 1)
    chosen = dict(state.chosen)
    for wanted in goal.options:
        if any(options_match(value, wanted) for value in chosen.values()):
            continue
        fitting = [
            (value != wanted, value)
            for name, values in product.options
            for value in values
            if name not in chosen and options_match(value, wanted)
        ]
        if fitting:
            return _click(min(fitting)[1], f"take {wanted}")
    return _click(BUY, "all is right")
