"""Prints every Python file of 500 lines or more and every function of 80 lines or more; exits 1 if there is one."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("src", "tests", "recipes", "benchmarks", "tools")
FILE_LINE_LIMIT = 500
FUNCTION_LINE_LIMIT = 80


def offenders(root: Path) -> Iterator[str]:
    """One line of text per file or function of `FOLDERS` under `root` that reaches its limit."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            yield from file_offenders(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())


def file_offenders(source: str, name: str) -> Iterator[str]:
    """The offenders in one file; lines are counted as an editor counts them, decorators not included."""
    num_lines = len(source.splitlines())
    if num_lines >= FILE_LINE_LIMIT:
        yield f"{name}: {num_lines} lines; a file has fewer than {FILE_LINE_LIMIT}"
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines >= FUNCTION_LINE_LIMIT:
                yield f"{name}:{node.lineno}: {node.name} has {num_lines} lines; a function has fewer than " + str(
                    FUNCTION_LINE_LIMIT
                )


def main() -> int:
    """The exit status: 1 if anything is too long."""
    lines = list(offenders(Path(__file__).resolve().parent.parent))
    print("\n".join(lines) if lines else "sizes: every file and function is within its limit")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
