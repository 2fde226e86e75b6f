"""A generated shop in WebShop's schema: rows of the three files, made of `vocabulary` and a seed.

Every product has four attributes. Two are in its title, one is in its description, and one is in a bullet point that
the search engine does not know, so that an agent has to look. Goals ask for two of them, for one value of every option
and for a price.

Splits share no product as a target: products of known types belong to "train" (eight tenths), "validation" or "test"
by the hash of their asin, "l1" has types that are in no other split, and "l2" such a category.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firesteel.environments.webshop.catalogue import (
    ATTRIBUTES,
    INSTRUCTIONS,
    ITEMS,
    Catalogue,
    Goal,
    read_goals,
    read_products,
)
from firesteel.environments.webshop.vocabulary import (
    BRANDS,
    CATEGORIES,
    OPTIONS,
    UNSEEN_CATEGORY,
    UNSEEN_KINDS,
    Category,
    Kind,
)
from firesteel.files import write_atomic

SPLITS = ("train", "validation", "test", "l1", "l2")
NUM_PRODUCTS = 1200
GOALS_PER_PRODUCT = 3

_SENTENCES = (
    "find {phrase} that is {first} and {second}, {options}",
    "buy {phrase}, {first} and {second}, {options}",
    "i want {phrase}, {options}, {first} and {second}",
)
_FILLERS = (
    "It comes in a plain paper box.",
    "Spare parts can be ordered.",
    "It is checked by hand before it leaves the workshop.",
    "Its makers answer letters.",
)

Rows = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]


def generate_catalogue(num_products: int = NUM_PRODUCTS, seed: int = 0) -> Catalogue:
    """The catalogue of `make_rows`, with its splits; goals of a split are shuffled by the seed."""
    items, attributes, instructions = make_rows(num_products, seed)
    problems: list[str] = []
    products = read_products(items, attributes, problems)
    goals = read_goals(products, instructions, problems)
    assert not problems, problems[0]
    numbers = list(range(len(goals)))
    random.Random(f"webshop/order/{seed}").shuffle(numbers)
    splits = {name: tuple(n for n in numbers if split_of(goals[n]) == name) for name in SPLITS}
    nouns = frozenset(kind.noun for category in CATEGORIES.values() for kind in category.kinds)
    return Catalogue(f"generated-{num_products}-{seed}", tuple(products), tuple(goals), splits, (), nouns)


def split_of(goal: Goal) -> str:
    """The split that a goal of the generated catalogue belongs to."""
    if goal.category == UNSEEN_CATEGORY:
        return "l2"
    if goal.query in UNSEEN_KINDS:
        return "l1"
    tenth = hashlib.blake2b(goal.asin.encode(), digest_size=8).digest()[0] % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def write_files(folder: str | Path, num_products: int = NUM_PRODUCTS, seed: int = 0) -> None:
    """Writes a generated catalogue as WebShop's three files; the folder must exist."""
    for name, rows in zip((ITEMS, ATTRIBUTES, INSTRUCTIONS), make_rows(num_products, seed), strict=True):
        write_atomic(Path(folder) / f"{name}.json", json.dumps(rows, ensure_ascii=False).encode())


def make_rows(num_products: int, seed: int) -> Rows:
    """The contents of the three files for `num_products` products, as many of each type, in shuffled order."""
    rng = random.Random(f"webshop/{num_products}/{seed}")
    types = [(name, category, kind) for name, category in CATEGORIES.items() for kind in category.kinds]
    asins = [f"B{number:09d}" for number in rng.sample(range(max(1000, num_products)), num_products)]
    items: list[dict[str, Any]] = []
    attributes: dict[str, Any] = {}
    instructions: dict[str, Any] = {}
    for number, asin in enumerate(asins):
        name, category, kind = types[number % len(types)]
        row, listed = _make_product(rng, asin, name, category, kind)
        items.append(row)
        goals = list(_make_goals(rng, row, kind, listed))
        attributes[asin] = {
            "attributes": listed, "instruction": goals[0]["instruction"],
            "instruction_attributes": goals[0]["instruction_attributes"],
        }  # fmt: skip
        instructions[asin] = goals
    rng.shuffle(items)
    return items, attributes, instructions


def _make_product(
    rng: random.Random, asin: str, name: str, category: Category, kind: Kind
) -> tuple[dict[str, Any], list[str]]:
    """A row of the product file and the product's attributes: two in the title, one described, one in the bullets."""
    brand, listed = rng.choice(BRANDS), rng.sample(category.attributes, 4)
    groups = {}
    for group in kind.groups:
        values = OPTIONS[group]
        offered = rng.sample(values, rng.randint(2, min(4, len(values))))
        groups[group] = [{"value": value, "image": None} for value in values if value in offered]
    bullets = [f"Made by {brand} for every day.", f"This one is {listed[3]}.", rng.choice(_FILLERS)]
    row = {
        "asin": asin,
        "name": f"{brand} {kind.noun}, {listed[0]}, {listed[1]}",
        "brand": brand,
        "full_description": f"{brand} offers {kind.phrase} for people who like it {listed[2]}.",
        "pricing": f"${rng.randint(*kind.prices)}.00",
        "category": name,
        "query": kind.noun,
        "product_category": "\u203a".join((f"{name.capitalize()} ", f" {kind.section} ", f" {kind.noun.capitalize()}")),
        "small_description": bullets,
        "customization_options": groups or "",
        "images": [""],
    }
    return row, listed


def _make_goals(rng: random.Random, row: dict[str, Any], kind: Kind, listed: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of the instruction file that ask for this product."""
    for _ in range(GOALS_PER_PRODUCT):
        first, second = wanted = rng.sample(listed, 2)
        options = {name: rng.choice(entries)["value"] for name, entries in row["customization_options"].items()}
        said = " and ".join(f"{name} {value}" for name, value in options.items())
        sentence = rng.choice(_SENTENCES).format(phrase=kind.phrase, first=first, second=second, options=said)
        yield {
            "asin": row["asin"],
            "instruction": sentence,
            "attributes": listed,
            "options": [f"{name}: {value}" for name, value in options.items()],
            "instruction_attributes": wanted,
            "instruction_options": list(options.values()),
        }
