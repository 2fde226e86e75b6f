"""Arithmetic and symbolic mathematics by sympy, built from a syntax tree: nothing is ever evaluated as Python.

sympy's own reader (`sympify`) calls `eval`, so it is not used. Sizes are limited before anything is built; what can
still take long runs in a `Worker`, which ends it.
"""

from __future__ import annotations

import ast
import math
import re
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import sympy

from firesteel.errors import ToolFailed
from firesteel.tools.syntax import parse_formula, refuse

MAX_POWER_BITS = 4096
MAX_SYMBOLIC_EXPONENT = 40
MAX_FACTORIAL = 300
MAX_BINOMIAL = 1000
SHOWN_DIGITS = 12

_IMPLIED_TIMES = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?=[a-df-zA-DF-Z(])")
_PERCENT_OF = re.compile(r"(\d+(?:\.\d+)?)\s*%\s*of\b")
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "E": sympy.E, "I": sympy.I, "oo": sympy.oo, "inf": sympy.oo}


def evaluate(text: str) -> str:
    """The value of a formula, exact and as a decimal; an equation in one unknown is solved."""
    text = _PERCENT_OF.sub(r"(\1/100)*", text)
    return show(build(parse_formula(_IMPLIED_TIMES.sub(r"\1*", text))))


def show(value: Any) -> str:
    """A result as text: integers as they are, other numbers with their decimal value, lists in brackets."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(show, value))}]" if value else "no solution"
    if value is True or value is False or isinstance(value, (str, sympy.logic.boolalg.BooleanAtom)):
        return str(value)
    if isinstance(value, sympy.Equality):
        unknowns = sorted(value.free_symbols, key=str)
        if len(unknowns) != 1:
            raise ToolFailed("an equation needs exactly one unknown; use solve(equation, unknown)")
        return f"{unknowns[0]} = {show(_solve(value, unknowns[0]))}"
    if value.is_Integer or not value.is_number:
        return str(value)
    decimal = _decimal(value)
    return decimal if value.is_Float or str(value) == decimal else f"{value} = {decimal}"


def _decimal(value: Any) -> str:
    number = sympy.N(value, SHOWN_DIGITS)
    if not number.is_Float:
        return str(number)
    return f"{float(number):.{SHOWN_DIGITS}g}"


def build(node: ast.AST) -> Any:
    """The sympy object of a syntax tree; `ToolFailed` for anything that is not on the lists of this module."""
    if isinstance(node, ast.Constant):
        return _number(node)
    if isinstance(node, ast.Name):
        return _name(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        operand = _operand(node.operand)
        return -operand if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.BinOp):
        return _binary(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _compare(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node, node.func.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_operand(element) for element in node.elts]
    raise refuse(node)


def _operand(node: ast.AST) -> Any:
    """A part of a formula; a result in words (`factorint`) cannot be one: sympy's functions evaluate a text."""
    value = build(node)
    if isinstance(value, str):
        raise ToolFailed(f"'{ast.unparse(node)[:60]}' is a text, with which nothing can be computed")
    return value


def _number(node: ast.Constant) -> Any:
    if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
        raise refuse(node)
    return sympy.Rational(str(node.value)) if abs(node.value) < 1e60 else sympy.Integer(int(node.value))


def _name(node: ast.Name) -> Any:
    if node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if len(node.id) > 12 or not node.id.isidentifier() or node.id.startswith("_"):
        raise refuse(node)
    return sympy.Symbol(node.id)


def _binary(node: ast.BinOp) -> Any:
    left, right = _operand(node.left), _operand(node.right)
    if isinstance(left, list) or isinstance(right, list):
        raise refuse(node)
    if isinstance(node.op, ast.Pow):
        return _power(left, right)
    if isinstance(node.op, (ast.Div, ast.FloorDiv, ast.Mod)) and right == 0:
        raise ToolFailed("division by zero")
    operations: dict[type[ast.operator], Callable[[], Any]] = {
        ast.Add: lambda: left + right,
        ast.Sub: lambda: left - right,
        ast.Mult: lambda: left * right,
        ast.Div: lambda: left / right,
        ast.FloorDiv: lambda: sympy.floor(left / right),
        ast.Mod: lambda: sympy.Mod(left, right),
    }
    if type(node.op) not in operations:
        raise refuse(node)
    return operations[type(node.op)]()


def _power(base: Any, exponent: Any) -> Any:
    """base ** exponent, refused where the result would be enormous."""
    if exponent.is_number:
        size = abs(sympy.N(exponent, 8))
        bits = abs(sympy.log(abs(base) + 1, 2).evalf(8)) if base.is_number else None
        if bits is None and not size <= MAX_SYMBOLIC_EXPONENT:
            raise ToolFailed(f"exponents of unknowns are limited to {MAX_SYMBOLIC_EXPONENT}")
        if bits is not None and not (bits * size <= MAX_POWER_BITS and size <= MAX_POWER_BITS):
            raise ToolFailed("the power is too large; for a remainder use powmod(base, exponent, modulus)")
    if base == 0 and exponent.is_negative:
        raise ToolFailed("division by zero")
    return base**exponent


def _compare(node: ast.Compare) -> Any:
    left, right = _operand(node.left), _operand(node.comparators[0])
    relations: dict[type[ast.cmpop], Any] = {
        ast.Eq: sympy.Eq, ast.NotEq: sympy.Ne, ast.Lt: sympy.Lt, ast.LtE: sympy.Le, ast.Gt: sympy.Gt, ast.GtE: sympy.Ge,
    }  # fmt: skip
    if type(node.ops[0]) not in relations:
        raise refuse(node)
    return relations[type(node.ops[0])](left, right)


def _call(node: ast.Call, name: str) -> Any:
    if name not in FUNCTIONS:
        raise ToolFailed(f"there is no function '{name[:30]}'; known: {', '.join(sorted(FUNCTIONS))}")
    least, most, function = FUNCTIONS[name]
    arguments = [_operand(argument) for argument in node.args]
    if not least <= len(arguments) <= most:
        raise ToolFailed(f"{name} takes {least} to {most} arguments, got {len(arguments)}")
    return function(*arguments)


def _integer(value: Any, most: int | None = None) -> int:
    if not getattr(value, "is_Integer", False):
        raise ToolFailed(f"wanted a whole number, got {str(value)[:40]}")
    if most is not None and not 0 <= value <= most:
        raise ToolFailed(f"wanted a whole number from 0 to {most}, got {str(value)[:40]}")
    return int(value)


def _values(arguments: Sequence[Any]) -> list[Any]:
    """Numbers that were given one by one or as one list."""
    values = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else list(arguments)
    if not values or not all(getattr(value, "is_number", False) for value in values):
        raise ToolFailed("wanted one or more numbers")
    return values


def _statistic(function: Callable[[list[Fraction]], Any]) -> Callable[..., Any]:
    def apply(*arguments: Any) -> Any:
        values = [sympy.nsimplify(value, rational=True) for value in _values(arguments)]
        result = function([Fraction(int(value.p), int(value.q)) for value in values])
        if isinstance(result, float):
            return sympy.Float(result)
        exact = Fraction(result)
        return sympy.Rational(exact.numerator, exact.denominator)

    return apply


def _solve(equation: Any, unknown: Any = None) -> Any:
    unknowns = sorted(equation.free_symbols, key=str)
    chosen = unknown if unknown is not None else unknowns[0] if len(unknowns) == 1 else None
    if chosen is None or not getattr(chosen, "is_Symbol", False):
        raise ToolFailed("solve(equation, unknown): say which letter is the unknown")
    solutions = sympy.solve(equation, chosen)
    return solutions[0] if len(solutions) == 1 else solutions


def _diff(expression: Any, variable: Any, times: Any = None) -> Any:
    return sympy.diff(expression, variable, 1 if times is None else _integer(times, 10))


def _integrate(expression: Any, variable: Any, low: Any = None, high: Any = None) -> Any:
    if low is None:
        return sympy.integrate(expression, variable)
    if high is None:
        raise ToolFailed("integrate(expression, variable, from, to): the upper end is missing")
    return sympy.integrate(expression, (variable, low, high))


def _round(value: Any, digits: Any = None) -> Any:
    places = 0 if digits is None else _integer(digits, 30)
    scaled = sympy.floor(abs(value) * 10**places + sympy.Rational(1, 2)) / sympy.Integer(10) ** places
    return scaled if value >= 0 else -scaled


def _factorint(value: Any) -> str:
    parts = sympy.factorint(_integer(value))
    return " * ".join(f"{prime}^{power}" if power > 1 else str(prime) for prime, power in sorted(parts.items()))


def _powmod(base: Any, exponent: Any, modulus: Any) -> Any:
    if modulus == 0:
        raise ToolFailed("division by zero")
    return sympy.Integer(pow(_integer(base), _integer(exponent), _integer(modulus)))


def _root(value: Any, degree: Any) -> Any:
    return _power(value, 1 / sympy.Integer(_integer(degree, 100)))


_MANY = 200
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "sqrt": (1, 1, sympy.sqrt),
    "root": (2, 2, _root),
    "exp": (1, 1, lambda value: _power(sympy.E, value)),
    "log": (1, 2, sympy.log),
    "ln": (1, 1, sympy.log),
    "log10": (1, 1, lambda value: sympy.log(value, 10)),
    "log2": (1, 1, lambda value: sympy.log(value, 2)),
    "sin": (1, 1, sympy.sin),
    "cos": (1, 1, sympy.cos),
    "tan": (1, 1, sympy.tan),
    "asin": (1, 1, sympy.asin),
    "acos": (1, 1, sympy.acos),
    "atan": (1, 1, sympy.atan),
    "sinh": (1, 1, sympy.sinh),
    "cosh": (1, 1, sympy.cosh),
    "tanh": (1, 1, sympy.tanh),
    "abs": (1, 1, sympy.Abs),
    "floor": (1, 1, sympy.floor),
    "ceil": (1, 1, sympy.ceiling),
    "round": (1, 2, _round),
    "mod": (2, 2, sympy.Mod),
    "powmod": (3, 3, _powmod),
    "gcd": (2, _MANY, lambda *values: sympy.Integer(math.gcd(*map(_integer, values)))),
    "lcm": (2, _MANY, lambda *values: sympy.Integer(math.lcm(*map(_integer, values)))),
    "factorial": (1, 1, lambda value: sympy.factorial(_integer(value, MAX_FACTORIAL))),
    "binomial": (2, 2, lambda n, k: sympy.binomial(_integer(n, MAX_BINOMIAL), _integer(k, MAX_BINOMIAL))),
    "isprime": (1, 1, lambda value: bool(sympy.isprime(_integer(value)))),
    "factorint": (1, 1, _factorint),
    "min": (1, _MANY, lambda *values: sympy.Min(*_values(values))),
    "max": (1, _MANY, lambda *values: sympy.Max(*_values(values))),
    "total": (1, _MANY, lambda *values: sympy.Add(*_values(values))),
    "mean": (1, _MANY, _statistic(statistics.mean)),
    "median": (1, _MANY, _statistic(statistics.median)),
    "stdev": (1, _MANY, _statistic(lambda values: float(statistics.stdev(values)))),
    "pstdev": (1, _MANY, _statistic(lambda values: float(statistics.pstdev(values)))),
    "solve": (1, 2, _solve),
    "diff": (2, 3, _diff),
    "integrate": (2, 4, _integrate),
    "limit": (3, 3, sympy.limit),
    "summation": (4, 4, lambda value, name, low, high: sympy.summation(value, (name, low, high))),
    "simplify": (1, 1, sympy.simplify),
    "expand": (1, 1, sympy.expand),
    "factor": (1, 1, sympy.factor),
}
