"""Reads a formula that a model wrote into Python's syntax tree, and never evaluates it.

`ast.parse` compiles nothing. Tools walk the tree and build objects of their library from the few nodes that they know.
"""

from __future__ import annotations

import ast
import re

from firesteel.errors import ToolFailed

MAX_FORMULA_CHARACTERS = 500
MAX_FORMULA_NODES = 400
MAX_NUMBER_DIGITS = 60

# Signs by their code points: times, middle dot, division, minus, en dash, pi, root, at most, at least, unequal.
_WRITTEN_OTHERWISE = str.maketrans(
    {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "\u03c0": " pi ", "\u221a": " sqrt ",
     "\u2264": "<=", "\u2265": ">=", "\u2260": "!="}
)  # fmt: skip
_SINGLE_EQUALS = re.compile(r"(?<![<>=!:])=(?!=)")
_LONG_NUMBER = re.compile(rf"\d{{{MAX_NUMBER_DIGITS + 1},}}")


def parse_formula(text: str) -> ast.expr:
    """The tree of one formula. `^` is a power and `=` an equality; a few signs of mathematics are translated.

    Raises:
        ToolFailed: the text is no formula, or too long.
    """
    if len(text) > MAX_FORMULA_CHARACTERS:
        raise ToolFailed(f"the formula has {len(text)} characters, the limit is {MAX_FORMULA_CHARACTERS}")
    if _LONG_NUMBER.search(text):
        raise ToolFailed(f"a number has more than {MAX_NUMBER_DIGITS} digits")
    source = _SINGLE_EQUALS.sub("==", text.translate(_WRITTEN_OTHERWISE).replace("^", "**").strip())
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ToolFailed("this is not a formula") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_FORMULA_NODES:
        raise ToolFailed(f"the formula has more than {MAX_FORMULA_NODES} parts")
    return tree.body


def refuse(node: ast.AST) -> ToolFailed:
    """The error for a node that a tool does not know."""
    return ToolFailed(f"'{ast.unparse(node)[:60]}' is not allowed here")
