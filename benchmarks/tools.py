"""Measures the tools and the generation of trajectories: python benchmarks/tools.py [--calls N] [--skip-sandbox].

Prints JSON lines. Tools: calls a second of wall time with one caller, the first call (which loads libraries) left out;
every query differs, so that no cache answers. `library` is the same work by the library alone, where the tool is a thin
layer over one. Trajectories: a judge that takes a fixed time for each of its two calls a step, so that the ideal rate
is connections / (steps * 2 * latency); tools and questions cost nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping

from _run import run

from firesteel.environments.questions import Question
from firesteel.environments.tool_questions import ToolQuestions
from firesteel.errors import MissingDependency
from firesteel.judges import PastStep, Situation, ToolRunner
from firesteel.openai_client import Ledger
from firesteel.selection import make_selector
from firesteel.tools import Tool, make_tools
from firesteel.tools.python import Python
from firesteel.tools.sandbox import Sandbox
from firesteel.trajectories import Parts, TrajectorySettings, generate_trajectories
from firesteel.writers import TemplateWriter

QUERIES: dict[str, Callable[[int], str]] = {
    "calculator": lambda n: f"{n} * 29 - 118",
    "dates": lambda n: f"days between 1990-01-01 and {2000 + n % 900:04d}-03-01",
    "dictionary": lambda n: f"word {n}",
    "logic": lambda n: f"x + {n} = {2 * n}",
    "reference": lambda n: ("planck constant", "element iron", "molar mass of C6H12O6")[n % 3],
    "search": lambda n: f"town founded in {1000 + n % 900}",
    "units": lambda n: f"{n} mile/hour to meter/second",
}


def rate(call: Callable[[int], object], num_calls: int) -> float:
    """Calls a second of wall time, after one call to warm up."""
    call(0)
    start = time.perf_counter()
    for number in range(1, num_calls + 1):
        call(number)
    return num_calls / (time.perf_counter() - start)


def library_rates(num_calls: int) -> dict[str, float]:
    """What the libraries reach without the tools around them."""
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
        return solver.check()

    def search(number: int) -> object:
        tokens = bm25s.tokenize([f"town founded in {1000 + number % 900}"], show_progress=False, return_ids=False)
        return index.retrieve(tokens, k=2, show_progress=False)

    return {
        "logic": rate(solve, num_calls),
        "search": rate(search, num_calls),
        "units": rate(lambda n: registry.Quantity(n, speed).to("meter/second"), num_calls),
    }


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
    """Trajectories a second for some judge connections, and the share of the ideal."""
    tools: dict[str, Tool] = make_tools(["dates"])
    parts = Parts(tools, TemplateWriter(), SlowJudge(latency_s), make_selector("best"), ToolRunner(tools))
    questions = [Question(f"q{n}", f"Which, {n}?", ("x", "y"), "A", 0, "made") for n in range(12 * connections)]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrajectorySettings(steps=steps, connections=connections, usage_lag=256)
        summary = generate_trajectories(questions, parts, folder, settings)
    reached = summary.trajectories / summary.wall_s
    ideal = connections / (steps * 2 * latency_s)
    return {"connections": connections, "per_s": round(reached, 2), "ideal": round(ideal, 2), "share": reached / ideal}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds of one judge call")
    parser.add_argument("--skip-sandbox", action="store_true")
    arguments = parser.parse_args()
    tools = make_tools(sorted(QUERIES), ToolQuestions.default_tool_options(sorted(QUERIES)))
    try:
        library = library_rates(arguments.calls)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{error}; run pip install 'firesteel[tools]'") from error
    for name, tool in tools.items():
        figures = {
            "tool": name,
            "calls_per_s": round(rate(lambda n, t=tool, q=QUERIES[name]: t.call(q(n)), arguments.calls)),
        }
        print(json.dumps(figures | ({"library_per_s": round(library[name])} if name in library else {})))
        tool.close()
    if not arguments.skip_sandbox:
        try:
            for workers in (1, 2):
                print(json.dumps({"tool": "python", **sandbox_rate(workers, 100)}))
        except MissingDependency as error:
            print(json.dumps({"tool": "python", "missing": str(error)}))
    for connections in (1, 4, 16, 64):
        print(json.dumps({"trajectories": pipeline(connections, arguments.latency)}))


if __name__ == "__main__":
    run(__file__, main)
