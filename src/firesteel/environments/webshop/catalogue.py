"""Products and goals in the schema of WebShop's three files, read from rows or from a folder of yours.

`items_shuffle.json` is a list of products, `items_ins_v2.json` their attributes by asin, `items_human_ins.json` the
instructions of people by asin. The small edition has `_1000` at the end of the first two names.
"""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firesteel.errors import StoreError

ITEMS, ATTRIBUTES, INSTRUCTIONS = "items_shuffle", "items_ins_v2", "items_human_ins"
EDITIONS = ("", "_1000")
GOAL_ORDER_SEED = 233
NUM_TEST, NUM_VALIDATION = 500, 1000

NO_ATTRIBUTES = ("DUMMY_ATTR",)
NO_PRICE = 100.0
"""What a product without a price costs."""
NO_BOUND = 1_000_000.0
BOUNDS = tuple(10.0 * tens for tens in range(1, 100))
"""Upper prices in dollars that goals ask for."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product. `price` is in dollars; where the row gives a range, `price_tag` shows it and `price` lies in it.

    `options` has the values of each group, such as ("color", ("red", "blue")), in lower case.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    price: float
    lowest_price: float
    price_tag: str
    options: tuple[tuple[str, tuple[str, ...]], ...]
    attributes: tuple[str, ...]
    category: str
    query: str
    product_category: str

    @property
    def text(self) -> str:
        """What the search engine knows of the product: title, description, first bullet point and options."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options)
        return " ".join((self.title, self.description, self.bullets[0] if self.bullets else "", options)).lower()


@dataclass(frozen=True, slots=True)
class Goal:
    """What to buy. `price_upper` is in dollars; the fields from `name` on are those of the product asked for."""

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    price_upper: float
    name: str
    category: str
    query: str
    product_category: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Products, goals, and the goals' numbers of each split.

    `problems` has a line for each row that was left out. `nouns` are the words of titles that count as nouns where
    they are known; None where a tagger has to find them.
    """

    name: str
    products: tuple[Product, ...]
    goals: tuple[Goal, ...]
    splits: Mapping[str, Sequence[int]]
    problems: tuple[str, ...] = ()
    nouns: frozenset[str] | None = None


def load_folder(path: str | Path, num_products: int | None = None) -> Catalogue:
    """The catalogue of a folder that holds the three files, of its first `num_products` rows or of all.

    Goals are shuffled by `random.Random(233)`; "test" is the first 500, "validation" the next 1,000, "train" the rest.
    Rows of another schema are left out, with a warning that names the first of them; as in the original, rows
    without a usable asin and second rows of an asin are left out silently.

    Differs from the original: price bounds, and prices of products that have a range, are drawn by the asin, so that
    they are the same in every run.

    Raises:
        StoreError: the folder or a file is missing, or not whole JSON, or most rows are of another schema.
    """
    folder = Path(path).expanduser()
    items, attributes, instructions = (_read_json(file) for file in _find_files(folder))
    rows = _require_kind(items, list, folder, ITEMS)[:num_products]
    attributes_by_asin = _require_kind(attributes, dict, folder, ATTRIBUTES)
    problems: list[str] = []
    products = read_products(rows, attributes_by_asin, problems)
    _require_most(products, problems, folder)
    goals = read_goals(products, _require_kind(instructions, dict, folder, INSTRUCTIONS), problems)
    if problems:
        message = f"webshop: {len(problems)} rows of '{folder}' are left out; the first: {'; '.join(problems[:3])}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    if not goals:
        raise StoreError(f"'{folder}': no product has an instruction in {INSTRUCTIONS}.json; do the files fit?")
    random.Random(GOAL_ORDER_SEED).shuffle(goals)
    last = NUM_TEST + NUM_VALIDATION
    splits = {"test": range(NUM_TEST), "validation": range(NUM_TEST, last), "train": range(last, len(goals))}
    within = {name: range(min(part.start, len(goals)), min(part.stop, len(goals))) for name, part in splits.items()}
    return Catalogue(str(folder), tuple(products), tuple(goals), within, tuple(problems))


def _find_files(folder: Path) -> tuple[Path, Path, Path]:
    """The three files, of the full edition where both are there."""
    if not folder.is_dir():
        raise StoreError(f"webshop: there is no folder '{folder}'; give the one with WebShop's {ITEMS}.json")
    third = folder / f"{INSTRUCTIONS}.json"
    for edition in EDITIONS:
        first, second = folder / f"{ITEMS}{edition}.json", folder / f"{ATTRIBUTES}{edition}.json"
        if first.is_file() and second.is_file() and third.is_file():
            return first, second, third
    wanted = f"{ITEMS}.json, {ATTRIBUTES}.json (or both with _1000 at the end) and {INSTRUCTIONS}.json"
    there = ", ".join(sorted(file.name for file in folder.glob("*.json"))) or "no JSON file"
    raise StoreError(f"webshop: '{folder}' must hold {wanted}; it has {there}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise StoreError(f"'{path}' is not UTF-8 text ({error.reason}); the file is damaged: get it again") from error
    except json.JSONDecodeError as error:
        is_cut = not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string")
        what = "ends in the middle" if is_cut else "is not JSON"
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise StoreError(f"'{path}' {what} ({where}); it is cut off or damaged: get it again") from error
    except RecursionError as error:
        raise StoreError(f"'{path}' is nested too deeply to be read; the file is damaged: get it again") from error


def _require_kind(value: Any, kind: type, folder: Path, name: str) -> Any:
    if not isinstance(value, kind):
        wanted = "a list of products" if kind is list else "an object with one entry per asin"
        raise StoreError(f"'{folder}', {name}: wanted {wanted}, got {type(value).__name__}")
    return value


def _require_most(products: Sequence[Product], problems: Sequence[str], folder: Path) -> None:
    if len(products) <= len(problems):
        if not problems:
            raise StoreError(f"'{folder}': {ITEMS}.json has no product")
        raise StoreError(
            f"'{folder}': {len(problems)} of {len(problems) + len(products)} products are of another schema than "
            f"WebShop's {ITEMS}.json; the first: {problems[0]}"
        )


def read_products(rows: Sequence[Any], attributes: Mapping[str, Any], problems: list[str]) -> list[Product]:
    """The products among some rows; a line for each row that is none is added to `problems`."""
    products: dict[str, Product] = {}
    for number, row in enumerate(rows, start=1):
        asin = row.get("asin") if isinstance(row, dict) else None
        if isinstance(asin, str) and (asin == "nan" or len(asin) > 10 or asin in products):
            continue
        try:
            products[str(asin)] = read_product(row, attributes)
        except (ValueError, TypeError) as error:
            problems.append(f"product {number} (asin {asin!r}): {error}")
    return list(products.values())


def read_product(row: Any, attributes: Mapping[str, Any]) -> Product:
    """A product of one row of `items_shuffle.json`; `ValueError` says what is wrong with the row."""
    if not isinstance(row, dict):
        raise ValueError(f"wanted an object, got {type(row).__name__}")
    for key in ("asin", "name", "full_description", "category", "query", "product_category"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"wanted a text under '{key}', got {row.get(key)!r:.40}")
    asin, given = row["asin"], row.get("small_description")
    bullets = given if isinstance(given, list) else [] if given is None else [given]
    prices, price_tag = read_pricing(row.get("pricing"))
    price = prices[0] if len(prices) == 1 else random.Random(f"webshop/price/{asin}").uniform(*prices)
    known = attributes.get(asin)
    listed = known.get("attributes") if isinstance(known, dict) else None
    return Product(
        asin=asin,
        title=row["name"],
        description=row["full_description"],
        bullets=_texts(bullets, "small_description"),
        price=price,
        lowest_price=min(prices),
        price_tag=price_tag,
        options=tuple(_read_options(row.get("customization_options"))),
        attributes=NO_ATTRIBUTES if listed is None else _texts(listed, "attributes"),
        category=row["category"],
        query=row["query"].lower().strip(),
        product_category=row["product_category"],
    )


def read_pricing(pricing: Any) -> tuple[list[float], str]:
    """The price or the two prices of a text such as "$5.00 - $7.50", in dollars, and how pages show them."""
    if not pricing:
        return [NO_PRICE], f"${NO_PRICE}"
    parts = pricing.split("$")[1:3] if isinstance(pricing, str) else []
    try:
        prices = [float(re.sub(r"[^\d.]", "", part)) for part in parts]
    except ValueError:
        prices = []
    if not prices:
        raise ValueError(f"wanted 'pricing' such as '$5.00' or '$5.00 - $7.50', got {pricing!r:.40}")
    return prices, " to ".join(f"${price}" for price in prices)


def _read_options(given: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    if not given:
        return
    if not isinstance(given, dict):
        raise ValueError(f"wanted an object under 'customization_options', got {given!r:.40}")
    for name, entries in given.items():
        if entries is None:
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"wanted a list of objects as option '{name}', got {entries!r:.40}")
        values = _texts([entry.get("value") for entry in entries], f"value of option '{name}'")
        yield name.lower(), tuple(value.strip().replace("/", " | ").lower() for value in values)


def _texts(values: Any, name: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"wanted texts under '{name}', got {values!r:.40}")
    return tuple(values)


def read_goals(products: Sequence[Product], instructions: Mapping[str, Any], problems: list[str]) -> list[Goal]:
    """The goals of all products in their order; instructions without attributes are none.

    A goal's bound is the higher of two of the four multiples of ten dollars above the price, drawn by asin and number;
    a product that costs 980 dollars or more has none.
    """
    goals: list[Goal] = []
    for product in products:
        given = instructions.get(product.asin, [])
        for number, row in enumerate(given if isinstance(given, list) else [given], start=1):
            try:
                goal = _read_goal(product, row, number)
            except (ValueError, TypeError) as error:
                problems.append(f"instruction {number} (asin '{product.asin}'): {error}")
            else:
                goals += [goal] if goal.attributes else []
    return goals


def _read_goal(product: Product, row: Any, number: int) -> Goal:
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        raise ValueError("wanted an object with a text under 'instruction'")
    attributes = _texts(row.get("instruction_attributes"), "instruction_attributes")
    options = _texts(row.get("instruction_options"), "instruction_options")
    above = [bound for bound in BOUNDS if bound > product.price][:4]
    bound, said = NO_BOUND, ""
    if len(above) >= 2:
        bound = max(random.Random(f"webshop/bound/{product.asin}/{number}").sample(above, 2))
        said = f", for less than {bound:.0f} dollars"
    return Goal(
        asin=product.asin,
        instruction=row["instruction"].strip(".") + said,
        attributes=attributes,
        options=options,
        price_upper=bound,
        name=product.title,
        category=product.category,
        query=product.query,
        product_category=product.product_category,
    )
