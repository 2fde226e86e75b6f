"""Environments by name. A user's own is given as "package.module:Class"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firesteel.environments.base import Environment
from firesteel.plugins import load

ENVIRONMENTS: dict[str, str] = {
    "household": "firesteel.environments.household:Household",
    "scienceworld": "firesteel.environments.scienceworld:ScienceWorld",
    "alfworld": "firesteel.environments.alfworld:AlfWorld",
    "webshop": "firesteel.environments.webshop:WebShop",
    "tool_calls": "firesteel.environments.tool_calls:ToolCalls",
    "bfcl": "firesteel.environments.bfcl:Bfcl",
    "tool_questions": "firesteel.environments.tool_questions:ToolQuestions",
    "mmlu_pro": "firesteel.environments.mmlu_pro:MmluPro",
}


def environment_class(name: str) -> type[Environment]:
    """The class behind a name of `ENVIRONMENTS` or a "package.module:Class" path.

    A class that was not written for firesteel is adapted (`firesteel.environments.adapters.adapt`).
    """
    found = load(name, ENVIRONMENTS, kind="environment")
    if isinstance(found, type) and issubclass(found, Environment):
        return found
    from firesteel.environments.adapters import adapt

    return adapt(found)


def make_environment(name: str, options: Mapping[str, Any]) -> Environment:
    """A new environment by name; importable by worker processes."""
    return environment_class(name)(**options)
