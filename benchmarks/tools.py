"""Measures the tools and the generation of trajectories: python benchmarks/tools.py [--calls N] [--skip-sandbox].

Prints JSON lines; --output FILE also writes them, with date, machine and versions.

Tools: calls a second of processor time, the first call (which loads libraries) left out. Queries differ, so
that no cache answers; the dictionary, WordNet's where it is installed, has none. `library` is the same work by the
library alone, where the tool is a thin layer over one; both take turns. Trajectories: a judge that takes a fixed time
for each of its two calls a step, so that the ideal rate is connections / (steps * 2 * latency); tools and questions
cost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from _run import run

from firesteel.environments.question_rows import Question
from firesteel.environments.tool_questions import ToolQuestions
from firesteel.errors import MissingDependency
from firesteel.judges import PastStep, Situation, ToolRunner
from firesteel.openai_client import Ledger
from firesteel.selection import make_selector
from firesteel.tools import Tool, make_tools
from firesteel.tools.dictionary import find_wordnet
from firesteel.tools.python import Python
from firesteel.tools.sandbox import Sandbox
from firesteel.trajectories import Parts, TrajectorySettings, generate_trajectories
from firesteel.writers import TemplateWriter

WORDS = ("harbinger", "run", "photosynthesis", "set", "ice cream", "quick", "abandon", "zygote", "no such word")
NUM_BLOCKS, NUM_REPEATS = 10, 3
QUERIES: dict[str, Callable[[int], str]] = {
    "calculator": lambda n: f"{n} * 29 - 118",
    "dates": lambda n: f"days between 1990-01-01 and {2000 + n % 900:04d}-03-01",
    "dictionary": lambda n: WORDS[n % len(WORDS)],
    "logic": lambda n: f"x + {n} = {2 * n}",
    "reference": lambda n: ("planck constant", "element iron", "molar mass of C6H12O6")[n % 3],
    "search": lambda n: f"town founded in {1000 + n % 900}",
    "units": lambda n: f"{n} mile/hour to meter/second",
}


Call = Callable[[int], object]


def cpu_s() -> float:
    """Processor time of this process and, on Linux, of its children that live: tools work in some."""
    spent = time.process_time()
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def rates(calls: Sequence[Call], num_calls: int) -> list[float]:
    """Calls a second of processor time of each, after one to warm up; they take turns, in blocks of a tenth."""
    spent_s = [0.0 for _ in calls]
    for call in calls:
        call(0)
    for block in range(NUM_BLOCKS):
        for place, call in enumerate(calls):
            start = cpu_s()
            for number in range(block + 1, num_calls + 1, NUM_BLOCKS):
                call(number)
            spent_s[place] += cpu_s() - start
    return [num_calls / max(seconds, 1e-6) for seconds in spent_s]


def library_calls() -> dict[str, Call]:
    """The work of some tools by their libraries alone."""
    import bm25s
    import pint
    import z3

    registry = pint.UnitRegistry(cache_folder=None)
    speed = registry.parse_units("mile/hour")
    index = bm25s.BM25()
    corpus = [f"town number {n} founded in {1000 + n % 900}" for n in range(360)]
    index.index(bm25s.tokenize(corpus, show_progress=False), show_progress=False)

    def solve(number: int) -> object:
        solver, unknown = z3.Solver(), z3.Int("x")
        solver.add(unknown + number == 2 * number)
        return solver.check(), solver.model()

    def search(number: int) -> object:
        tokens = bm25s.tokenize([f"town founded in {1000 + number % 900}"], show_progress=False, return_ids=False)
        return index.retrieve(tokens, k=2, show_progress=False)

    return {"logic": solve, "search": search, "units": lambda n: registry.Quantity(n, speed).to("meter/second")}


class SlowJudge:
    """Scores everything alike after a fixed time."""

    name, sees_key, ledger = "slow", False, Ledger()

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s

    def score(self, situation: Situation, thought: str, candidates: Mapping[str, str]) -> dict[str, float]:
        time.sleep(self.latency_s)
        return dict.fromkeys(candidates, 7.0)

    def process_ok(self, situation: Situation, step: PastStep) -> bool:
        time.sleep(self.latency_s)
        return True


def pipeline(connections: int, latency_s: float, steps: int = 5) -> dict[str, float]:
    """Trajectories a second for some judge connections, and the share of the ideal: the median of `NUM_REPEATS`."""
    tools: dict[str, Tool] = make_tools(["dates"])
    parts = Parts(tools, TemplateWriter(), SlowJudge(latency_s), make_selector("best"), ToolRunner(tools))
    questions = [Question(f"q{n}", f"Which, {n}?", ("x", "y"), "A", 0, "made") for n in range(8 * connections)]
    settings = TrajectorySettings(steps=steps, connections=connections, usage_lag=256)
    reached = []
    for _ in range(NUM_REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            summary = generate_trajectories(questions, parts, folder, settings)
        reached.append(summary.trajectories / summary.wall_s)
    ideal = connections / (steps * 2 * latency_s)
    share = {name: round(of(reached) / ideal, 3) for name, of in (("share", median), ("least", min), ("most", max))}
    return {"connections": connections, "per_s": round(median(reached), 2), "ideal": round(ideal, 2), **share}


def sandbox_rate(workers: int, num_calls: int) -> dict[str, float]:
    """Sandboxed programs a second, all workers busy."""
    from concurrent.futures import ThreadPoolExecutor

    sandbox = Sandbox(workers=workers)
    tool = Python(sandbox)
    sandbox.warm_up()
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda n: tool.call(f"{n} * 2").text, range(num_calls)))
    elapsed_s = time.perf_counter() - start
    sandbox.close()
    assert results == [str(2 * n) for n in range(num_calls)]
    return {"workers": workers, "calls_per_s": round(num_calls / elapsed_s, 1)}


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All figures, one after the other."""
    tools = make_tools(sorted(QUERIES), ToolQuestions.default_tool_options(sorted(QUERIES)))
    if find_wordnet() is not None:
        tools["dictionary"] = make_tools(["dictionary"])["dictionary"]
    try:
        library = library_calls()
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{error}; run pip install 'firesteel[tools]'") from error
    for name, tool in tools.items():
        own: Call = lambda n, t=tool, q=QUERIES[name]: t.call(q(n))  # noqa: E731
        found = rates([own, library[name]] if name in library else [own], arguments.calls)
        yield {"tool": name} | dict(zip(("calls_per_cpu_s", "library_per_cpu_s"), map(round, found), strict=False))
        tool.close()
    if not arguments.skip_sandbox:
        try:
            for workers in (1, 2):
                yield {"tool": "python", **sandbox_rate(workers, 100)}
        except MissingDependency as error:
            yield {"tool": "python", "missing": str(error)}
    for connections in (1, 4, 16, 64):
        yield {"trajectories": pipeline(connections, arguments.latency)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds of one judge call")
    parser.add_argument("--skip-sandbox", action="store_true")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="the machine, in words")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = []
    for row in measured(arguments):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if arguments.output:
        versions = {name: version(name) for name in ("sympy", "pint", "bm25s", "z3-solver")}
        about = {
            "date": str(date.today()), "machine": arguments.machine, "latency_s": arguments.latency,
            "versions": versions | {"python": platform.python_version()}, "rows": rows,
        }  # fmt: skip
        arguments.output.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    run(__file__, main)
