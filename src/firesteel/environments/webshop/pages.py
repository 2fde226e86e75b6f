"""What a page looks like: "rich" with every button written out, "compact" for models that pay for each token."""

from __future__ import annotations

import re
from collections.abc import Iterator

from firesteel.environments.webshop.catalogue import Product
from firesteel.environments.webshop.engine import (
    ATTRIBUTES,
    BACK,
    BUY,
    DESCRIPTION,
    FEATURES,
    ITEM,
    NEXT,
    PREVIOUS,
    RESULTS,
    SEARCH,
    Shop,
    State,
    clickable,
)

LABELS = {BACK: "Back to Search", PREVIOUS: "< Prev", NEXT: "Next >", BUY: "Buy Now"}


def rich_page(shop: Shop, state: State) -> str:
    """The page as the original's "text_rich" mode marks it: `[button] ... [button_]`, clicked ones as such.

    Differs from the original: the instruction is the environment's `goal` and not repeated here, and there are no
    ratings, which the three files' pages never show either.
    """
    if state.page == SEARCH:
        return f"WebShop\n{_button('Search')}"
    if state.page == RESULTS:
        buttons = clickable(shop, state)
        listed = [shop.catalogue.products[number] for number in shop.listed(state)]
        head = [f"Page {state.number} of {shop.num_pages(state)}, {len(state.results)} results"]
        turns = [_button(LABELS[target]) for target in (PREVIOUS, NEXT) if target in buttons]
        opened = [number in state.clicked for number in shop.listed(state)]
        items = [
            f"\n{_button(item.asin, was)}\n{item.title}\n{item.price_tag}"
            for item, was in zip(listed, opened, strict=True)
        ]
        return "\n".join([_button(LABELS[BACK]), *head, *turns, *items])
    product, top = shop.product(state), [_button(LABELS[BACK]), _button(LABELS[PREVIOUS])]
    if state.page != ITEM:
        return "\n".join([*top, *_sub_page(product, state.page)])
    options = [line for name, values in product.options for line in _group(name, values, dict(state.chosen))]
    below = [_button(name.capitalize()) for name in shop.sub_pages()]
    return "\n".join([*top, *options, product.title, f"Price: {product.price_tag}", *below, _button(LABELS[BUY])])


def _button(text: str, was_clicked: bool = False) -> str:
    return f"[clicked button] {text} [clicked button_]" if was_clicked else f"[button] {text} [button_]"


def _group(name: str, values: tuple[str, ...], chosen: dict[str, str]) -> Iterator[str]:
    yield name
    for value in values:
        yield f"  {_button(value, chosen.get(name) == value)}"


def _sub_page(product: Product, page: str) -> list[str]:
    if page == DESCRIPTION:
        return [product.description]
    if page == FEATURES:
        return list(product.bullets)
    if page == ATTRIBUTES:
        return [*product.attributes, product.category, product.query, product.product_category]
    return ["No reviews."]


def compact_page(shop: Shop, state: State) -> str:
    """The same in lower case without the buttons that stand on every page of that kind."""
    if state.page == SEARCH:
        return "search"
    if state.page == RESULTS:
        lines = [f"page {state.number} of {shop.num_pages(state)}"]
        for number in shop.listed(state):
            product, mark = shop.catalogue.products[number], " seen" if number in state.clicked else ""
            lines.append(f"{product.asin} {product.title} {short_price(product)}{mark}")
        return "\n".join(lines).lower()
    product = shop.product(state)
    if state.page != ITEM:
        return "\n".join(_sub_page(product, state.page)).lower()
    chosen = dict(state.chosen)
    lines = [
        f"{name} is {chosen[name]}" if name in chosen else f"{name}: {' | '.join(values)}"
        for name, values in product.options
    ]
    return "\n".join([f"{product.title} {short_price(product)}", *lines]).lower()


def short_price(product: Product) -> str:
    """The price as pages show it, without cents where there are none."""
    return re.sub(r"\.0\b", "", product.price_tag)
