"""Judges by name. A user's own is given as "package.module:Class" and called with the keywords of `make_judge`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from firesteel.errors import ConfigError
from firesteel.judges.base import Judge, PastStep, Situation, ToolRunner
from firesteel.plugins import load

__all__ = ["JUDGES", "Judge", "PastStep", "Situation", "ToolRunner", "make_judge"]

JUDGES: dict[str, str] = {
    "llm": "firesteel.judges.llm:LlmJudge",
    "policy": "firesteel.judges.policy:PolicyJudge",
    "rules": "firesteel.judges.rules:RulesJudge",
    "rules_with_key": "firesteel.judges.rules:RulesWithKeyJudge",
}


def make_judge(
    name: str,
    *,
    runner: ToolRunner | None = None,
    key: Mapping[str, int] | None = None,
    client: object | None = None,
    mean_logprobs: Callable[..., Any] | None = None,
) -> Judge:
    """The judge of a name in `JUDGES`, made with those of the given parts that its constructor takes.

    Raises:
        ConfigError: a part that it needs was not given.
    """
    cls = load(name, JUDGES, kind="judge")
    given = {"runner": runner, "key": key, "client": client, "mean_logprobs": mean_logprobs}
    wanted = [parameter for parameter in inspect.signature(cls).parameters if parameter in given]
    missing = [parameter for parameter in wanted if given[parameter] is None]
    if missing:
        raise ConfigError(f"judge '{name}' needs {', '.join(missing)}")
    judge: Judge = cls(**{parameter: given[parameter] for parameter in wanted})
    return judge
