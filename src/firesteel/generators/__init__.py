"""Generators by name. A user's own is given as "package.module:Class"."""

from __future__ import annotations

from typing import Any

from firesteel.plugins import load

GENERATORS: dict[str, str] = {
    "torch": "firesteel.generators.torch:TorchGenerator",
    "mock": "firesteel.generators.mock:MockGenerator",
}


def generator_class(name: str) -> type[Any]:
    """The class behind a name of `GENERATORS` or a "package.module:Class" path."""
    return load(name, GENERATORS, kind="generator")
