"""How the CPU seconds of `TorchGenerator` grow with turns, context and branches, and why; a table and JSON.

Each table changes one thing. `prefill` is the time to the first token, `decode` that of each later one for all rows;
`turns` is a whole episode with the cache kept. Every line has the growth since the line before as an exponent (1: twice
as long for twice as much). Under the table stands why: the share of each term of the cost at the last line, fitted by
least squares of relative errors, with coefficients of at least 0.

    python benchmarks/generation_growth.py --sizes 1M 10M --output benchmarks/results/generation_growth.json
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation import NEVER, SIZES, Floor, Run, ask, build_model, interleaved, play_ours, random_tokens, spread, write

from firesteel.generators.torch import TorchGenerator

TURNS = (5, 10, 20, 40)
CONTEXTS = (512, 1024, 2048, 4096, 8192)
BRANCHES = (4, 8, 16, 32, 64)
NEW = 32
ROWS = 4

Table = dict[int, list[float]]
"""Seconds of every repetition by what grows."""

TERMS: dict[str, dict[str, Callable[[float], float]]] = {
    "turns": {"tokens of the turns: fixed work a token": lambda n: n, "attention to all turns before": lambda n: n * n},
    "context, prefill": {"products with weights": lambda n: n, "causal attention": lambda n: n * n},
    "context, decode": {"weights and fixed work a step": lambda n: 1.0, "reading keys and values": lambda n: n},
    "branches, prefill": {"the context, once": lambda n: 1.0, "copies and rows": lambda n: n},
    "branches, decode": {"weights and fixed work a step": lambda n: 1.0, "rows": lambda n: n},
}
"""What the cost of each table is made of."""


def measure(generator: TorchGenerator, arguments: argparse.Namespace) -> dict[str, Table]:
    """Seconds of every table."""
    (prefix,) = random_tokens(1, max(CONTEXTS))
    first = random_tokens(ROWS, 64)
    seen = [random_tokens(ROWS, 16, seed=turn) for turn in range(max(TURNS))]

    def episode(turns: int) -> Run:
        return lambda: play_ours(generator, first, seen[:turns], 12, True)

    def generating(rows: Sequence[list[int]], new: int) -> Run:
        return lambda: generator.generate(ask(rows, new))

    def both(contexts: Mapping[int, Sequence[list[int]]], name: str) -> dict[str, Table]:
        runs: dict[str, Run] = {}
        for at, rows in contexts.items():
            runs[f"{at} 1"], runs[f"{at} {NEW}"] = generating(rows, 1), generating(rows, NEW + 1)
        taken = interleaved(runs, arguments.repeats)
        prefill = {at: taken[f"{at} 1"] for at in contexts}
        decode = {
            at: [(late - early) / NEW for late, early in zip(taken[f"{at} {NEW}"], prefill[at], strict=True)]
            for at in contexts
        }
        return {f"{name}, prefill": prefill, f"{name}, decode": decode}

    apart = {length: [[1 + row, *prefix[1:length]] for row in range(ROWS)] for length in CONTEXTS}
    same = {count: [prefix[:2048]] * count for count in BRANCHES}
    turns = interleaved({str(count): episode(count) for count in TURNS}, arguments.repeats)
    found: dict[str, Table] = {"turns": {int(at): seconds for at, seconds in turns.items()}}
    return found | both(apart, "context") | both(same, "branches")


def explained(name: str, table: Table) -> dict[str, Any]:
    """Medians, exponents from line to line, and each term's share of the last line."""
    medians = {at: float(np.median(seconds)) for at, seconds in table.items()}
    exponents = [math.log(medians[b] / medians[a]) / math.log(b / a) for a, b in pairwise(medians)]
    terms = TERMS[name]
    weights = nonnegative_fit(
        np.array([[term(at) / medians[at] for term in terms.values()] for at in medians]), np.ones(len(medians))
    )
    parts = [weight * term(max(medians)) for weight, term in zip(weights, terms.values(), strict=True)]
    return {
        "cpu_ms": {at: spread([1e3 * each for each in seconds]) for at, seconds in table.items()},
        "exponents": [round(each, 2) for each in exponents],
        "share_at_the_last": {term: round(part / sum(parts), 2) for term, part in zip(terms, parts, strict=True)},
    }


def nonnegative_fit(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares of two columns with coefficients of at least 0: where one would be negative, the other alone."""
    both = np.linalg.lstsq(columns, target, rcond=None)[0]
    if (both >= 0).all():
        return both
    alone = np.diag([float(column @ target / (column @ column)) for column in columns.T])
    errors = [float(np.square(columns @ each - target).sum()) for each in alone]
    return alone[int(np.argmin(errors))]


def print_table(name: str, found: dict[str, Any]) -> None:
    print(name)
    exponents = [None, *found["exponents"]]
    for (at, values), exponent in zip(found["cpu_ms"].items(), exponents, strict=True):
        more = "" if exponent is None else f"  exponent {exponent:.2f}"
        print(f"    {at:6} {values['median']:10.2f} ms ({values['min']:.2f} to {values['max']:.2f}){more}")
    shares = "; ".join(f"{term} {100 * share:.0f}%" for term, share in found["share_at_the_last"].items())
    print(f"    at the last: {shares}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=sorted(SIZES), default=["1M", "10M"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="the machine, in words")
    parser.add_argument("--output", type=Path, help="JSON file to write (results of the same name are replaced)")
    arguments = parser.parse_args()
    arguments.dtype = "float32"
    torch.set_num_threads(1)
    floor = Floor()
    for size in arguments.sizes:
        generator = TorchGenerator(build_model(size, arguments.dtype), end_token_ids=(NEVER,))
        tables = measure(generator, arguments)
        results = {f"{size} {name}": explained(name, table) for name, table in tables.items()}
        for name, found in results.items():
            print_table(name, found)
        if arguments.output:
            write(arguments, results, floor)


if __name__ == "__main__":
    main()
