"""BFCL's eight stateful backends, called by name. No string is ever evaluated."""

from __future__ import annotations

import copy
import decimal
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from firesteel.environments.bfcl.package import BACKENDS, backend_class, function_docs
from firesteel.environments.tool_calls.tasks import Call, shortened
from firesteel.errors import EnvironmentFailed, TaskError

_STATELESS = ("MathAPI",)

LARGEST_PRECISION = 1_000
"""Digits that a model may ask for. No ground truth wants more than 10."""
_MOST_BITS = 16_384
"""An integer with more is longer than what Python writes out (4,300 digits), so its text would be an error anyway."""


class Backends:
    """The instances of one episode, by class name. `copy` gives independent ones in the same state."""

    def __init__(self, instances: dict[str, Any]) -> None:
        self.instances = instances
        # Where two classes document the same name, the later one has it, as in BFCL.
        self._owners = {doc["name"]: name for name in instances for doc in function_docs(name)}

    @classmethod
    def load(cls, config: Mapping[str, Any], names: Sequence[str], *, long_context: bool) -> Backends:
        """Fresh instances of the named classes in their initial state; an unknown name raises `TaskError`."""
        instances: dict[str, Any] = {}
        for name in names:
            if name not in BACKENDS:
                raise TaskError(f"bfcl has no backend '{name}'; known: {', '.join(BACKENDS)}")
            instances[name] = backend_class(name)()
            if name not in _STATELESS:
                instances[name]._load_scenario(copy.deepcopy(config.get(name, {})), long_context=long_context)
        return cls(instances)

    def copy(self) -> Backends:
        """Independent instances in the same state, their random generators included."""
        return Backends(copy.deepcopy(self.instances))

    def call(self, call: Call) -> str:
        """The text that a call leads to. Only documented functions are called; a failure is a text, too."""
        owner = self._owners.get(call.name)
        if owner is None:
            return f"Error during execution: there is no function {shortened(call.name)}"
        if (excess := _excess(call)) is not None:
            return f"Error during execution: {excess}"
        method = getattr(self.instances[owner], call.name)
        try:
            with _own_precision(owner):
                return _as_text(method(**copy.deepcopy(dict(call.arguments))))
        except EnvironmentFailed:
            raise
        except Exception as error:  # boundary: a backend raises whatever arguments provoke; BFCL shows it as the result
            return f"Error during execution: {error}"

    def parameters(self, name: str) -> list[str]:
        """The names of a function's parameters, in the order of its definition; none for an unknown function."""
        owner = self._owners.get(name)
        return [] if owner is None else list(inspect.signature(getattr(self.instances[owner], name)).parameters)

    def state(self) -> dict[str, dict[str, Any]]:
        """The public attributes of every instance: what the benchmark compares."""
        return {
            name: {key: value for key, value in vars(instance).items() if not key.startswith("_")}
            for name, instance in self.instances.items()
        }


def _excess(call: Call) -> str | None:
    """Why a call is not made: arithmetic whose size a model chooses runs in C, where no time limit can stop it."""
    if _integer(call.arguments.get("precision")) > LARGEST_PRECISION:
        return f"precision must be at most {LARGEST_PRECISION}"
    if call.name == "round_number" and _integer(call.arguments.get("decimal_places")) < -LARGEST_PRECISION:
        return f"decimal_places must be at least {-LARGEST_PRECISION}"
    if call.name == "power":
        base, exponent = call.arguments.get("base"), call.arguments.get("exponent")
        if isinstance(base, int) and isinstance(exponent, int) and (abs(base).bit_length() - 1) * exponent > _MOST_BITS:
            return "the power has too many digits"
    return None


@contextmanager
def _own_precision(owner: str) -> Iterator[None]:
    """MathAPI sets the precision of `decimal` and `mpmath` for the whole process; it is put back here."""
    if owner != "MathAPI":
        yield
        return
    mpmath: Any = importlib.import_module("mpmath")
    with decimal.localcontext(), mpmath.workprec(mpmath.mp.prec):
        yield


def _integer(value: Any) -> int:
    """A number, or text of one, as an integer (mpmath takes all three); 0 for anything else."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _as_text(result: Any) -> str:
    """A call's result as BFCL compares it: text as it is, objects as JSON where that is possible, else `str`."""
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            return str(result)
    return str(result)


def turn_flaw(
    model: Backends, truth: Backends, had_calls: bool, results: Sequence[str], wanted: Sequence[str]
) -> str | None:
    """What is wrong at the end of a turn in which calls were wanted, or None (BFCL's multi-turn rules).

    The public state of every backend must equal that of the ground truth's, and the results of the ground truth's
    calls in this turn (`wanted`) must be among all `results` of the model so far, in any order, each as often as it is
    wanted.
    """
    if not had_calls:
        return "no call in a turn that wants some"
    own, right = model.state(), truth.state()
    for name, attributes in right.items():
        for key, value in attributes.items():
            if own[name].get(key) != value:
                return f"{name}.{key} is not what it should be"
    left = list(results)
    for text in wanted:
        if text not in left:
            return f"the result {shortened(text)} was never seen"
        left.remove(text)
    return None
