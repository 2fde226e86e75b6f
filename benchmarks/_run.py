"""What the benchmarks have in common: a missing package is one JSON line, not an error, so that the rest goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from firesteel.errors import MissingDependency


def run(file: str, main: Callable[[], None]) -> None:
    """Runs a benchmark. Where something that it needs is not installed, a line says what and how to get it."""
    try:
        main()
    except MissingDependency as error:
        report_missing(Path(file).stem, error)


def report_missing(benchmark: str, error: MissingDependency, **about: str) -> None:
    """The line for what could not be measured."""
    print(json.dumps({"benchmark": benchmark, **about, "not_measured": str(error)}), flush=True)
