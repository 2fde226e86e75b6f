"""Rows of WebShop's three files, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from firesteel.environments.webshop.catalogue import Goal, Product, read_product


def product_row(asin: str = "B000000001", **changes: Any) -> dict[str, Any]:
    """A row of `items_shuffle.json` that is right in every respect but those given."""
    row = {
        "asin": asin,
        "name": "Acme kettle",
        "full_description": "Boils water.",
        "pricing": "$12.00",
        "category": "kitchen",
        "query": "Kettles ",
        "product_category": "Kitchen \u203a Cooking \u203a Kettles",
        "small_description": ["Holds two cups.", "Comes in a box."],
        "customization_options": {"Color": [{"value": " Red/Blue ", "image": None}, {"value": "green"}], "Size": None},
        "images": ["x"],
    }
    return {**row, **changes}


def make_product(**changes: Any) -> Product:
    """The product of such a row; `attributes` are those of `items_ins_v2.json`."""
    attributes = changes.pop("attributes", ["quiet"])
    row = product_row(**changes)
    return read_product(row, {row["asin"]: {"attributes": attributes}})


def make_goal(**changes: Any) -> Goal:
    """A goal that the product above fits but for what is given."""
    fields: dict[str, Any] = {
        "asin": "B000000001", "instruction": "find a kettle", "attributes": ("quiet",), "options": (),
        "price_upper": 20.0, "name": "Acme kettle", "category": "kitchen", "query": "kettles",
        "product_category": "Kitchen \u203a Cooking \u203a Kettles",
    }  # fmt: skip
    return Goal(**{**fields, **changes})


def instruction_row(asin: str, **changes: Any) -> dict[str, Any]:
    """A row of `items_human_ins.json`."""
    row = {
        "asin": asin, "instruction": "i need a quiet kettle.", "attributes": ["quiet"], "options": [],
        "instruction_attributes": ["quiet"], "instruction_options": ["green"],
    }  # fmt: skip
    return {**row, **changes}


def write_folder(folder: Path, items: Any, attributes: Any, instructions: Any, edition: str = "") -> Path:
    """The three files with these contents."""
    names = (f"items_shuffle{edition}", f"items_ins_v2{edition}", "items_human_ins")
    for name, content in zip(names, (items, attributes, instructions), strict=True):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
