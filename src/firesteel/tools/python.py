"""The tool `python`: runs a program in the sandbox."""

from __future__ import annotations

from typing import Any, ClassVar

from firesteel.errors import ToolFailed
from firesteel.tools.base import MAX_OUTPUT_CHARACTERS, Tool
from firesteel.tools.sandbox import Sandbox

_ENDINGS = {
    "timeout": "the program was ended: it ran for too long",
    "flood": "the program was ended: it wrote too much",
}


class Python(Tool):
    """Runs Python with the standard library; answers what it printed, and the value of a last expression."""

    name: ClassVar[str] = "python"
    description: ClassVar[str] = (
        "Runs a Python program (standard library, no files, no network) and shows what it prints and the value of its "
        "last expression"
    )
    example: ClassVar[str] = "sum(n * n for n in range(10))"
    example_output: ClassVar[str] = "285"

    def __init__(
        self, sandbox: Sandbox | None = None, *, max_output_characters: int = MAX_OUTPUT_CHARACTERS, **limits: Any
    ) -> None:
        """`limits` are the settings of `Sandbox`; a sandbox that is given is shared and stays open."""
        super().__init__(max_output_characters=max_output_characters)
        self._owns = sandbox is None
        self._sandbox = sandbox or Sandbox(**limits)

    def answer(self, query: str) -> str:
        result = self._sandbox.run(_without_fences(query))
        text = result.output.strip()
        if result.status == "ok":
            return text or "the program ended and printed nothing"
        shown = text[-self.max_output_characters // 2 :] if result.status == "error" else text[:200]
        raise ToolFailed("; ".join(filter(None, [_ENDINGS.get(result.status, ""), shown])) or "the program failed")

    def close(self) -> None:
        if self._owns:
            self._sandbox.close()


def _without_fences(code: str) -> str:
    """The code inside a Markdown fence that a model may have put around it."""
    lines = code.strip().splitlines()
    if len(lines) >= 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        return "\n".join(lines[1:-1])
    return code
