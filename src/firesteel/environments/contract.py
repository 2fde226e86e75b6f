"""What an environment must return: one test of it, for rollouts and for `check_environment`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from firesteel.errors import EnvironmentFailed
from firesteel.guard import readable, shown
from firesteel.types import Observation, StepResult


def require(holds: bool, place: str, wanted: str, got: object) -> None:
    """Raises `EnvironmentFailed` where a promise is broken."""
    if not holds:
        raise EnvironmentFailed(f"{place}: wanted {wanted}, got {type(got).__name__} {shown(got)}")


def checked_text(text: Any, place: str) -> str:
    """A text, readable; raises `EnvironmentFailed` where it is none."""
    require(isinstance(text, str), place, "a str", text)
    return readable(text)


def checked_observation(observation: Any, where: str, before: str = "") -> Observation:
    """An observation whose texts are readable. Messages begin with `before` and name the call as `where`.

    Raises:
        EnvironmentFailed: it is no observation, or a field is of another type.
    """
    require(isinstance(observation, Observation), f"{before}result of {where}", "an Observation", observation)
    text = checked_text(observation.text, f"{before}text of {where}")
    listed: Any = observation.admissible
    is_right = listed is None or (isinstance(listed, (tuple, list)) and all(isinstance(each, str) for each in listed))
    require(is_right, f"{before}admissible of {where}", "a tuple of str or None", listed)
    return Observation(text, None if listed is None else tuple(map(readable, listed)))


def checked_result(result: Any, where: str, before: str = "") -> StepResult:
    """A step's result in plain types: the observation is readable, `info` a dict and its known entries plain.

    Raises:
        EnvironmentFailed: it is no result, or a field is of another type, not finite or out of its range.
    """
    require(isinstance(result, StepResult), f"{before}{where}", "a StepResult", result)
    observation = checked_observation(result.observation, where, before)
    require(_is_finite(result.reward), f"{before}reward of {where}", "a finite number", result.reward)
    for name in ("terminated", "truncated"):
        value = getattr(result, name)
        require(_is_bool(value), f"{before}{name} of {where}", "a bool", value)
    require(isinstance(result.info, Mapping), f"{before}info of {where}", "a mapping", result.info)
    info: dict[str, Any] = dict(result.info)
    for name in ("success", "valid"):
        if name in info:
            require(_is_bool(info[name]), f"{before}info['{name}'] of {where}", "a bool", info[name])
            info[name] = bool(info[name])
    if "score" in info:
        is_right = _is_finite(info["score"]) and 0.0 <= info["score"] <= 1.0
        require(is_right, f"{before}info['score'] of {where}", "a number from 0 to 1", info["score"])
        info["score"] = float(info["score"])
    return StepResult(observation, float(result.reward), bool(result.terminated), bool(result.truncated), info)


def _is_bool(value: object) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
