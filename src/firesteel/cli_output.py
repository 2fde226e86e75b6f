"""What every command prints last, and the console that says how it goes."""

from __future__ import annotations

import json
import math
from typing import Any

import typer
from rich.console import Console

console = Console(stderr=True)


def finish(result: dict[str, Any], as_json: bool) -> None:
    """The last output: one JSON object, in which what is not a finite number is null, or where things lie."""
    if as_json:
        print(json.dumps(finite(result), allow_nan=False))
        return
    for key in ("before", "after"):
        if result.get(key):
            row = result[key]
            rate = f"{row['success']:.1%} ({row['low']:.1%} to {row['high']:.1%})" if row["n"] else "unknown"
            typer.echo(f"{key} training: success {rate} on {row['n']} episodes of {row['split']}")
    for key in ("text", "table", "plot", "model", "written", "directory"):
        if result.get(key):
            typer.echo(result[key] if key == "text" else f"{key}: {result[key]}")


def finite(value: Any) -> Any:
    """The value with None in the place of NaN and infinities, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
