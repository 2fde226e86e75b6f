"""The tool `logic`: does it follow, can it hold (z3, in a child process)."""

from __future__ import annotations

from typing import ClassVar

from firesteel.tools.base import MAX_OUTPUT_CHARACTERS, Tool
from firesteel.tools.worker import Worker


class Logic(Tool):
    """Propositional logic and arithmetic over whole numbers."""

    name: ClassVar[str] = "logic"
    description: ClassVar[str] = (
        "Says whether statements separated by ';' can hold together, with an example, or whether what stands after "
        "'|-' follows from them. Statements: and, or, not, ->, <->, comparisons of whole numbers with + - *, "
        "distinct(a, b)"
    )
    example: ClassVar[str] = "p -> q; not q |- not p"
    example_output: ClassVar[str] = "yes, it follows"

    def __init__(
        self, *, timeout_s: float = 5.0, memory_mb: int = 2048, max_output_characters: int = MAX_OUTPUT_CHARACTERS
    ) -> None:
        """The library is loaded by the child process with the first call (about a second)."""
        super().__init__(max_output_characters=max_output_characters)
        self._worker = Worker("firesteel.tools.deduction:decide", timeout_s=timeout_s, memory_mb=memory_mb)

    def answer(self, query: str) -> str:
        return self._worker.call(query)

    def close(self) -> None:
        self._worker.close()
