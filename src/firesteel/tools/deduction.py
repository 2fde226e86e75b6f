"""Propositions and whole-number puzzles by z3, built from a syntax tree: nothing is ever evaluated as Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import z3

from firesteel.errors import ToolFailed
from firesteel.tools.syntax import parse_formula, refuse

SOLVER_EFFORT = 20_000_000
"""What z3 may spend, in its own count: about three seconds, but the same queries are decided on every machine."""
MAX_STATEMENTS = 40
MAX_EXPONENT = 6

_ARROWS = (("<->", " iff "), ("<=>", " iff "), ("->", " implies "), ("=>", " implies "))
_FOLLOWS = re.compile(r"\|-|\btherefore\b|\bentails\b")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "distinct": z3.Distinct,
    "abs": lambda value: z3.If(value < 0, -value, value),
}


def decide(text: str) -> str:
    """Whether the statements can hold together, with an example; or, after `|-`, whether the conclusion follows."""
    parts = _FOLLOWS.split(text)
    if len(parts) > 2:
        raise ToolFailed("wanted at most one '|-'")
    statements = [piece for piece in re.split(r"[;\n]", parts[0]) if piece.strip()]
    if (not statements and len(parts) == 1) or len(statements) > MAX_STATEMENTS:
        raise ToolFailed(f"wanted 1 to {MAX_STATEMENTS} statements separated by ';'")
    trees = [_tree(piece) for piece in statements]
    goal = _tree(parts[1]) if len(parts) == 2 else None
    builder = Builder([*trees, *([] if goal is None else [goal])])
    solver = z3.Solver()
    solver.set("rlimit", SOLVER_EFFORT)
    solver.add(*(builder.proposition(tree) for tree in trees))
    if goal is not None:
        solver.add(z3.Not(builder.proposition(goal)))
    return _report(solver, builder, is_entailment=goal is not None)


def _report(solver: z3.Solver, builder: Builder, *, is_entailment: bool) -> str:
    outcome = solver.check()
    if outcome == z3.unknown:
        raise ToolFailed("undecided within the limit of effort")
    if outcome == z3.unsat:
        return "yes, it follows" if is_entailment else "contradiction: the statements cannot all hold"
    model = solver.model()
    values = ", ".join(
        f"{name} = {model.eval(variable, model_completion=True)}"
        for name, variable in sorted(builder.variables.items())
    )
    return f"no, it does not follow: {values}" if is_entailment else f"possible: {values}"


def _tree(text: str) -> ast.expr:
    """One statement; `implies` and `iff` bind weaker than `or`, `iff` weakest."""
    for arrow, word in _ARROWS:
        text = text.replace(arrow, word)
    return parse_formula(_infix(text.strip()))


def _infix(text: str) -> str:
    """Writes top-level `implies` and `iff` as calls, which Python's grammar can hold. Both group to the right."""
    for word in ("iff", "implies"):
        place = _top_level(text, word)
        if place is not None:
            left, right = text[:place], text[place + len(word) :]
            return f"{word}({_infix(left.strip())}, {_infix(right.strip())})"
    return _inside_brackets(text)


def _top_level(text: str, word: str) -> int | None:
    depth = 0
    for match in re.finditer(rf"[()]|\b{word}\b", text):
        if match[0] == "(":
            depth += 1
        elif match[0] == ")":
            depth -= 1
        elif depth == 0 and not text[match.end() :].startswith("("):
            return match.start()
    return None


def _inside_brackets(text: str) -> str:
    """Applies `_infix` to the inside of every outermost pair of brackets."""
    pieces, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character == "(":
            depth += 1
            if depth == 1:
                pieces.append(text[start : index + 1])
                start = index + 1
        elif character == ")" and depth:
            depth -= 1
            if depth == 0:
                inside = text[start:index]
                pieces.append(_infix(inside) if re.search(r"\b(?:iff|implies)\b", inside) else inside)
                start = index
    return "".join([*pieces, text[start:]])


class Builder:
    """z3 expressions for syntax trees. A name that occurs in arithmetic is a whole number, any other a proposition."""

    def __init__(self, trees: list[ast.expr]) -> None:
        numbers = _numbers_in(trees)
        names = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names -= {"implies", "iff", "true", "false", "True", "False", *_FUNCTIONS}
        self.variables: dict[str, Any] = {
            name: z3.Int(name) if name in numbers else z3.Bool(name) for name in sorted(names)
        }

    def proposition(self, node: ast.expr) -> Any:
        """The formula of a statement."""
        if isinstance(node, ast.Name) and node.id in self.variables:
            variable = self.variables[node.id]
            if not z3.is_bool(variable):
                raise ToolFailed(f"'{node.id}' is used both as a number and as a statement")
            return variable
        if isinstance(node, (ast.Constant, ast.Name)):
            return self._truth(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
            return z3.Not(self.proposition(node.operand))
        if isinstance(node, ast.BoolOp):
            join = z3.And if isinstance(node.op, ast.And) else z3.Or
            return join(*(self.proposition(value) for value in node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr)):
            join = z3.And if isinstance(node.op, ast.BitAnd) else z3.Or
            return join(self.proposition(node.left), self.proposition(node.right))
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node, node.func.id)
        raise refuse(node)

    def number(self, node: ast.expr) -> Any:
        """The arithmetic expression of a tree."""
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return z3.IntVal(node.value)
        if isinstance(node, ast.Name) and node.id in self.variables:
            return self.variables[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.number(node.operand)
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "abs" and node.args:
            return _FUNCTIONS["abs"](self.number(node.args[0]))
        raise refuse(node)

    def _truth(self, node: ast.Constant | ast.Name) -> Any:
        value = node.value if isinstance(node, ast.Constant) else {"true": True, "false": False}.get(node.id)
        if not isinstance(value, bool):
            raise refuse(node)
        return z3.BoolVal(value)

    def _comparison(self, node: ast.Compare) -> Any:
        terms = [node.left, *node.comparators]
        if len(terms) == 2 and all(
            isinstance(term, ast.Name) and z3.is_bool(self.variables.get(term.id)) for term in terms
        ):
            same = self.proposition(terms[0]) == self.proposition(terms[1])
            return z3.Not(same) if isinstance(node.ops[0], ast.NotEq) else same
        relations: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
            ast.Eq: lambda a, b: a == b, ast.NotEq: lambda a, b: a != b, ast.Lt: lambda a, b: a < b,
            ast.LtE: lambda a, b: a <= b, ast.Gt: lambda a, b: a > b, ast.GtE: lambda a, b: a >= b,
        }  # fmt: skip
        if any(type(operator) not in relations for operator in node.ops):
            raise refuse(node)
        numbers = [self.number(term) for term in terms]
        pairs = zip(node.ops, numbers, numbers[1:], strict=False)
        return z3.And(*(relations[type(operator)](left, right) for operator, left, right in pairs))

    def _call(self, node: ast.Call, name: str) -> Any:
        if name in ("implies", "iff") and len(node.args) == 2:
            left, right = (self.proposition(argument) for argument in node.args)
            return z3.Implies(left, right) if name == "implies" else left == right
        if name == "distinct" and len(node.args) >= 2:
            return z3.Distinct(*(self.number(argument) for argument in node.args))
        raise refuse(node)

    def _arithmetic(self, node: ast.BinOp) -> Any:
        left = self.number(node.left)
        if isinstance(node.op, ast.Pow):
            power = node.right
            if not (isinstance(power, ast.Constant) and type(power.value) is int and 1 <= power.value <= MAX_EXPONENT):
                raise ToolFailed(f"exponents must be whole numbers from 1 to {MAX_EXPONENT}")
            product = left
            for _ in range(power.value - 1):
                product = product * left
            return product
        right = self.number(node.right)
        operations: dict[type[ast.operator], Callable[[], Any]] = {
            ast.Add: lambda: left + right, ast.Sub: lambda: left - right, ast.Mult: lambda: left * right,
            ast.FloorDiv: lambda: left / right, ast.Mod: lambda: left % right,
        }  # fmt: skip
        if type(node.op) not in operations:
            raise refuse(node)
        return operations[type(node.op)]()


def _numbers_in(trees: list[ast.expr]) -> set[str]:
    """The names that stand in arithmetic: compared by order or with a number, or below an arithmetic operator.

    An equality between two names alone says nothing about them; it takes the kind that either has elsewhere.
    """
    numbers: set[str] = set()
    while True:
        found = numbers.union(*(_arithmetic_names(node, numbers) for tree in trees for node in ast.walk(tree)))
        if found == numbers:
            return numbers - set(_FUNCTIONS)
        numbers = found


def _arithmetic_names(node: ast.AST, numbers: set[str]) -> set[str]:
    """The names below one node that it shows to be numbers, when those in `numbers` are known to be."""
    below: list[ast.expr] = []
    if isinstance(node, ast.Compare):
        terms = [node.left, *node.comparators]
        is_plain = all(isinstance(term, ast.Name) and term.id not in numbers for term in terms)
        is_ordered = any(isinstance(operator, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for operator in node.ops)
        below = terms if is_ordered or not is_plain else []
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        below = node.args
    return {part.id for term in below for part in ast.walk(term) if isinstance(part, ast.Name)}
