"""The tool `calculator`: exact arithmetic and symbolic mathematics (sympy, in a child process)."""

from __future__ import annotations

from typing import ClassVar

from firesteel.tools.base import MAX_OUTPUT_CHARACTERS, Tool
from firesteel.tools.syntax import MAX_FORMULA_CHARACTERS
from firesteel.tools.worker import Worker


class Calculator(Tool):
    """Exact arithmetic, equations, calculus and statistics in ordinary notation."""

    name: ClassVar[str] = "calculator"
    description: ClassVar[str] = (
        "Evaluates a formula exactly: + - * / ^, sqrt, log, sin, gcd, factorial, powmod, mean, median, stdev, "
        "solve(equation, x), diff(f, x), integrate(f, x, a, b), limit(f, x, a), factor, expand"
    )
    example: ClassVar[str] = "solve(3*x + 7 = 52, x)"
    example_output: ClassVar[str] = "15"
    max_query_characters: ClassVar[int] = MAX_FORMULA_CHARACTERS

    def __init__(
        self, *, timeout_s: float = 5.0, memory_mb: int = 1024, max_output_characters: int = MAX_OUTPUT_CHARACTERS
    ) -> None:
        """The library is loaded by the child process with the first call (about a second)."""
        super().__init__(max_output_characters=max_output_characters)
        self._worker = Worker("firesteel.tools.algebra:evaluate", timeout_s=timeout_s, memory_mb=memory_mb)

    def answer(self, query: str) -> str:
        return self._worker.call(query)

    def close(self) -> None:
        self._worker.close()
