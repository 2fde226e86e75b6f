"""Reading WebShop's three files: what is taken from a row, goals and splits, and every kind of damage."""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path
from typing import Any

import pytest
from webshop_rows import instruction_row, make_product, product_row, write_folder

from firesteel.environments.webshop import WebShop
from firesteel.environments.webshop.catalogue import load_folder, read_goals, read_pricing, read_products
from firesteel.environments.webshop.generate import generate_catalogue, write_files
from firesteel.errors import StoreError, TaskError


def asin_of(number: int) -> str:
    return f"B{number:09d}"


def folder_with(folder: Path, items: Any, *, num_goals: int = 1, edition: str = "") -> Path:
    """A folder of these items; each product has `num_goals` instructions."""
    asins = [row["asin"] for row in items if isinstance(row, dict) and "asin" in row]
    attributes = {asin: {"attributes": ["quiet"]} for asin in asins}
    instructions = {asin: [instruction_row(asin)] * num_goals for asin in asins}
    return write_folder(folder, items, attributes, instructions, edition)


# Rows


def test_what_a_product_takes_from_its_row() -> None:
    product = make_product()
    assert (product.asin, product.title, product.query) == ("B000000001", "Acme kettle", "kettles")
    assert product.options == (("color", ("red | blue", "green")),)
    assert product.bullets == ("Holds two cups.", "Comes in a box.")
    assert product.attributes == ("quiet",)
    assert product.text == "acme kettle boils water. holds two cups. color: red | blue, green"
    bare = make_product(customization_options="", small_description="One line.", pricing="")
    assert (bare.options, bare.bullets, bare.price, bare.price_tag) == ((), ("One line.",), 100.0, "$100.0")


@pytest.mark.parametrize(
    ("pricing", "prices", "tag"),
    [
        ("$877.80", [877.8], "$877.8"),
        ("$1,204.00", [1204.0], "$1204.0"),
        ("$5.00 - $7.50", [5.0, 7.5], "$5.0 to $7.5"),
        ("$5.00 - $7.50 - $9.00", [5.0, 7.5], "$5.0 to $7.5"),
        ("", [100.0], "$100.0"),
        (None, [100.0], "$100.0"),
    ],
)
def test_prices(pricing: str | None, prices: list[float], tag: str) -> None:
    assert read_pricing(pricing) == (prices, tag)


def test_a_price_within_a_range_is_the_same_in_every_run() -> None:
    one, two = make_product(pricing="$5.00 - $7.50"), make_product(pricing="$5.00 - $7.50")
    assert 5.0 <= one.price <= 7.5 and one.lowest_price == 5.0
    assert one.price == two.price != make_product(asin="B000000002", pricing="$5.00 - $7.50").price


def test_products_without_an_entry_have_the_placeholder_attribute() -> None:
    (product,) = read_products([product_row()], {}, [])
    assert product.attributes == ("DUMMY_ATTR",)


def test_rows_that_the_original_skips_are_skipped_silently() -> None:
    problems: list[str] = []
    rows = [product_row("nan"), product_row("B0000000012"), product_row(), product_row(name="a second one")]
    assert [product.title for product in read_products(rows, {}, problems)] == ["Acme kettle"]
    assert problems == []


def test_a_goal_has_the_higher_of_two_of_the_next_four_tens() -> None:
    rows = {asin_of(n): [instruction_row(asin_of(n))] for n in range(200)}
    products = read_products([product_row(asin) for asin in rows], {}, [])
    goals = read_goals(products, rows, [])
    # The price is 12: of 20, 30, 40, 50 two are drawn, the higher one is 30 in 1, 40 in 2, 50 in 3 of 6 cases.
    counts = collections.Counter(goal.price_upper for goal in goals)
    assert set(counts) == {30.0, 40.0, 50.0} and counts[30.0] < counts[40.0] < counts[50.0]
    assert goals == read_goals(products, rows, [])
    bound = int(goals[0].price_upper)
    assert goals[0].instruction == f"i need a quiet kettle, for less than {bound} dollars"
    assert (goals[0].attributes, goals[0].options, goals[0].query) == (("quiet",), ("green",), "kettles")


@pytest.mark.parametrize(("price", "bounds"), [("$960.00", {980.0, 990.0}), ("$980.00", {1e6}), ("$2,000.00", {1e6})])
def test_a_dear_product_has_two_bounds_or_none(price: str, bounds: set[float]) -> None:
    rows = {asin_of(n): [instruction_row(asin_of(n))] for n in range(40)}
    goals = read_goals(read_products([product_row(asin, pricing=price) for asin in rows], {}, []), rows, [])
    assert {goal.price_upper for goal in goals} == bounds
    assert all(("less than" in goal.instruction) == (goal.price_upper < 1e6) for goal in goals)


def test_instructions_without_attributes_are_no_goals() -> None:
    rows = [instruction_row("B000000001", instruction_attributes=[]), instruction_row("B000000001")]
    problems: list[str] = []
    goals = read_goals([make_product()], {"B000000001": rows, "B9": rows}, problems)
    assert len(goals) == 1 and problems == []


# The folder


def test_goals_come_in_the_order_of_seed_233_and_are_cut_at_500_and_1500(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [product_row(asin_of(n)) for n in range(400)], num_goals=4)
    catalogue = load_folder(folder)
    expected = [asin_of(n) for n in range(400) for _ in range(4)]
    random.seed(233)
    random.shuffle(expected)
    assert [goal.asin for goal in catalogue.goals] == expected
    assert catalogue.splits == {"test": range(500), "validation": range(500, 1500), "train": range(1500, 1600)}


def test_num_products_takes_the_first_rows(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [product_row(asin_of(n)) for n in range(9)])
    catalogue = load_folder(folder, 4)
    assert [product.asin for product in catalogue.products] == [asin_of(n) for n in range(4)]
    # Fewer goals than 500 are all test goals.
    assert catalogue.splits == {"test": range(4), "validation": range(4, 4), "train": range(4, 4)}


def test_the_small_edition_is_found_and_the_full_one_goes_first(tmp_path: Path) -> None:
    folder_with(tmp_path, [product_row("B1", name="small")], edition="_1000")
    assert load_folder(tmp_path).products[0].title == "small"
    folder_with(tmp_path, [product_row("B1", name="full")])
    assert load_folder(tmp_path).products[0].title == "full"


def test_a_generated_shop_written_to_files_is_read_back_as_it_was(tmp_path: Path) -> None:
    write_files(tmp_path, 144, seed=3)
    generated, read = generate_catalogue(144, seed=3), load_folder(tmp_path)
    assert read.products == generated.products
    assert sorted(map(repr, read.goals)) == sorted(map(repr, generated.goals))
    assert json.loads((tmp_path / "items_ins_v2.json").read_text())[read.goals[0].asin]["instruction_attributes"]


@pytest.mark.filterwarnings("ignore:webshop takes all words")
def test_an_episode_on_files(tmp_path: Path) -> None:
    write_files(tmp_path, 144)
    options = {"path": str(tmp_path)}
    task = WebShop.tasks("test", count=1, seed=1, **options)[0]
    environment = WebShop(**options)
    environment.reset(task, seed=0)
    while (step := environment.expert()) is not None:
        result = environment.step(step.action)
    assert result.info == {"success": True, "score": 1.0, "valid": True}
    # 144 products have 432 goals, all of which are test goals.
    with pytest.raises(TaskError, match="has 432 goals, none of them in split 'train'; use more products"):
        WebShop.tasks("train", **options)


# Damage


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(StoreError) as raised:
        load_folder(folder)
    message = str(raised.value)
    assert [part for part in parts if part not in message] == [], message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "shop", f"there is no folder '{tmp_path / 'shop'}'", "items_shuffle.json")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path, "must hold items_shuffle.json, items_ins_v2.json", "items_human_ins.json", "it has no JSON file")
    folder_with(tmp_path, [product_row()])
    (tmp_path / "items_ins_v2.json").unlink()
    refused(tmp_path, "it has items_human_ins.json, items_shuffle.json")


@pytest.mark.parametrize("name", ["items_shuffle", "items_ins_v2", "items_human_ins"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut_off(tmp_path: Path, name: str, share: float) -> None:
    folder_with(tmp_path, [product_row(asin_of(n)) for n in range(3)])
    path = tmp_path / f"{name}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path, str(path), "ends in the middle (line 1, column", "cut off or damaged: get it again")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"<html>quota exceeded</html>", ("is not JSON (line 1, column 1",)),
        (b'[{"asin": "B1"} {"asin": "B2"}]', ("is not JSON (line 1, column 17",)),
        (b'["\xff\xfe"]', ("is not UTF-8 text",)),
        (b'{"B1": {}}', ("wanted a list of products, got dict",)),
        (b"3", ("wanted a list of products, got int",)),
        (b"[]", ("items_shuffle.json has no product",)),
        (b"[" * 100_000, ("items_shuffle.json' is nested too deeply", "damaged: get it again")),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: bytes, parts: tuple[str, ...]) -> None:
    folder_with(tmp_path, [product_row()])
    (tmp_path / "items_shuffle.json").write_bytes(content)
    refused(tmp_path, *parts)


def test_attributes_and_instructions_are_objects(tmp_path: Path) -> None:
    write_folder(tmp_path, [product_row()], [], {})
    refused(tmp_path, "items_ins_v2: wanted an object with one entry per asin, got list")
    write_folder(tmp_path, [product_row()], {}, [])
    refused(tmp_path, "items_human_ins: wanted an object with one entry per asin, got list")
    write_folder(tmp_path, [product_row()], {}, {"B999": [instruction_row("B999")]})
    refused(tmp_path, "no product has an instruction in items_human_ins.json")


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"name": None}, "wanted a text under 'name', got None"),
        ({"full_description": ["a"]}, "wanted a text under 'full_description', got ['a']"),
        ({"pricing": "free"}, "wanted 'pricing' such as '$5.00' or '$5.00 - $7.50', got 'free'"),
        ({"pricing": "$"}, "got '$'"),
        ({"pricing": 5}, "got 5"),
        ({"small_description": [1]}, "wanted texts under 'small_description', got [1]"),
        ({"customization_options": ["red"]}, "wanted an object under 'customization_options'"),
        ({"customization_options": {"Color": "red"}}, "wanted a list of objects as option 'Color', got 'red'"),
        ({"customization_options": {"Color": [{"name": "red"}]}}, "value of option 'Color'"),
    ],
)
def test_a_row_of_another_schema_is_named_and_left_out(tmp_path: Path, changes: dict[str, Any], flaw: str) -> None:
    rows = [product_row(asin_of(0)), product_row(asin_of(1), **changes), product_row(asin_of(2))]
    folder = folder_with(tmp_path, rows)
    with pytest.warns(RuntimeWarning, match="1 rows of .* are left out; the first: product 2 [(]asin 'B000000001'[)]"):
        catalogue = load_folder(folder)
    assert len(catalogue.products) == 2 and len(catalogue.goals) == 2
    assert flaw in catalogue.problems[0]


@pytest.mark.parametrize("row", [None, "B1", ["B1"], {}, {"id": "B1"}])
def test_rows_without_an_asin(row: Any) -> None:
    problems: list[str] = []
    assert read_products([row], {}, problems) == []
    assert problems[0].startswith("product 1 (asin None): wanted ")


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"instruction": 3}, "wanted an object with a text under 'instruction'"),
        ({"instruction_attributes": None}, "wanted texts under 'instruction_attributes', got None"),
        ({"instruction_options": {"color": "red"}}, "wanted texts under 'instruction_options'"),
    ],
)
def test_an_instruction_of_another_schema_is_named(changes: dict[str, Any], flaw: str) -> None:
    problems: list[str] = []
    rows = [instruction_row("B000000001"), instruction_row("B000000001", **changes)]
    assert len(read_goals([make_product()], {"B000000001": rows}, problems)) == 1
    assert problems[0].startswith(f"instruction 2 (asin 'B000000001'): {flaw}")
    problems.clear()
    assert read_goals([make_product()], {"B000000001": "buy it"}, problems) == [] and len(problems) == 1


def test_a_file_in_which_most_rows_are_of_another_schema_is_refused(tmp_path: Path) -> None:
    rows = [product_row(asin_of(0)), *({"asin": asin_of(n), "title": "kettle"} for n in range(1, 4))]
    folder_with(tmp_path, rows)
    refused(
        tmp_path, "3 of 4 products are of another schema", "product 2 (asin 'B000000001'): wanted a text under 'name'"
    )
