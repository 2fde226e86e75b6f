"""What firesteel declares that it needs: its own packages, and those of every extra, with their bounds."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from firesteel.errors import ConfigError

CORE = ""
"""The name under which `declared` has what firesteel always needs."""

PURPOSES = {
    "scienceworld": "environment scienceworld",
    "alfworld": "environment alfworld (compiled with gcc, make, cmake)",
    "webshop": "environment webshop",
    "bfcl": "environment bfcl",
    "tools": "tools of questions",
    "plot": "plots",
    "gymnasium": "Gymnasium environments",
    "openenv": "OpenEnv clients",
    "dev": "tests and checks",
    "docs": "documentation",
}
"""What each extra is for, those for users first."""

_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def declared() -> dict[str, list[Requirement]]:
    """The requirements of every extra by its name, and under `CORE` those that are always needed.

    They are those of the installed distribution, or of `pyproject.toml` where a checkout runs without being installed.
    """
    try:
        metadata = importlib.metadata.metadata("firesteel")
    except importlib.metadata.PackageNotFoundError:
        return _of_checkout()
    found = _parsed(metadata.get_all("Requires-Dist") or ())
    core = [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]
    extras = {
        name: [each for each in found if each not in core and each.marker and each.marker.evaluate({"extra": name})]
        for name in metadata.get_all("Provides-Extra") or ()
    }
    return {CORE: core, **extras}


def _of_checkout() -> dict[str, list[Requirement]]:
    if not _PYPROJECT.is_file():
        raise ConfigError("this installation of firesteel does not say what it needs; install it again with pip")
    project = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]
    return {
        name: _parsed(lines)
        for name, lines in {CORE: project["dependencies"], **project["optional-dependencies"]}.items()
    }


def _parsed(lines: Iterable[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines]
