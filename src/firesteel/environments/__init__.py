"""Environments by name. A user's own is given as "package.module:Class"."""

from __future__ import annotations

from firesteel.environments.base import Environment
from firesteel.plugins import load

ENVIRONMENTS: dict[str, str] = {
    "household": "firesteel.environments.household:Household",
    "scienceworld": "firesteel.environments.scienceworld:ScienceWorld",
}


def environment_class(name: str) -> type[Environment]:
    """The class behind a name of `ENVIRONMENTS` or a "package.module:Class" path."""
    return load(name, ENVIRONMENTS, kind="environment")
