"""What is taken from the package `bfcl-eval`: its data, its AST checker, its eight backends."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from firesteel.errors import MissingDependency, TaskError
from firesteel.plugins import nearest

VERSION = "2026.3.23"
HOW_TO_INSTALL = (
    f"pip install --no-deps bfcl-eval=={VERSION} and pip install 'firesteel[bfcl]' "
    "(its own dependencies pin old versions and every vendor's client, none of which is needed)"
)

PYTHON_CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple",
                     "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")  # fmt: skip
SINGLE_TURN = (*PYTHON_CATEGORIES, "simple_java", "simple_javascript", "irrelevance", "live_irrelevance",
               "live_relevance")  # fmt: skip
MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")

GROUPS = {
    "non_live": ("simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple"),
    "live": ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
    "multi_turn": MULTI_TURN,
    "single_turn": SINGLE_TURN,
    "all": (*SINGLE_TURN, *MULTI_TURN),
}

_FUNCTION_FILES = {
    "GorillaFileSystem": ("gorilla_file_system", "gorilla_file_system"),
    "MathAPI": ("math_api", "math_api"),
    "MessageAPI": ("message_api", "message_api"),
    "TwitterAPI": ("posting_api", "posting_api"),
    "TicketAPI": ("ticket_api", "ticket_api"),
    "TradingBot": ("trading_bot", "trading_bot"),
    "TravelAPI": ("travel_booking", "travel_booking"),
    "VehicleControlAPI": ("vehicle_control", "vehicle_control"),
}
BACKENDS = tuple(_FUNCTION_FILES)


def package_directory() -> Path:
    """Where `bfcl_eval` is installed; `MissingDependency` if it is not. The package is not imported."""
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or found.origin is None:
        raise MissingDependency(f"BFCL needs the package bfcl-eval: {HOW_TO_INSTALL}")
    return Path(found.origin).parent


def _import(name: str) -> Any:
    package_directory()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(f"'{name}' cannot be imported ({error}); {HOW_TO_INSTALL}") from error


def entries(category: str) -> Iterator[dict[str, Any]]:
    """The records of a category, each with its `ground_truth` (None where the benchmark has none)."""
    known = (*SINGLE_TURN, *MULTI_TURN)
    if category not in known:
        raise TaskError(f"bfcl has no category '{category}'{nearest(category, known)}; known: {', '.join(known)}")
    data = package_directory() / "data"
    answers = data / "possible_answer" / f"BFCL_v4_{category}.json"
    truths = {row["id"]: row["ground_truth"] for row in _rows(answers)} if answers.exists() else {}
    for row in _rows(data / f"BFCL_v4_{category}.json"):
        yield {**row, "ground_truth": truths.get(row["id"])}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


@lru_cache(maxsize=16)
def function_docs(backend: str) -> tuple[dict[str, Any], ...]:
    """The documented functions of a backend, in BFCL's notation."""
    name = _FUNCTION_FILES[backend][0]
    return tuple(_rows(package_directory() / "data" / "multi_turn_func_doc" / f"{name}.json"))


@lru_cache(maxsize=16)
def backend_class(backend: str) -> type[Any]:
    """The class of a backend."""
    module = _import(f"bfcl_eval.eval_checker.multi_turn_eval.func_source_code.{_FUNCTION_FILES[backend][1]}")
    cls: type[Any] = getattr(module, backend)
    return cls


@lru_cache(maxsize=1)
def ast_checker_module() -> Any:
    """BFCL's module of AST checkers.

    It asks a table of models whether dots in names were replaced; that table imports every vendor's client. A stand-in
    that says no takes its place while the module is imported.
    """
    table = "bfcl_eval.constants.model_config"
    if table in sys.modules:
        return _import("bfcl_eval.eval_checker.ast_eval.ast_checker")
    stand_in = types.ModuleType(table)
    stand_in.MODEL_CONFIG_MAPPING = defaultdict(  # type: ignore[attr-defined]
        lambda: types.SimpleNamespace(underscore_to_dot=False)
    )
    sys.modules[table] = stand_in
    try:
        return _import("bfcl_eval.eval_checker.ast_eval.ast_checker")
    finally:
        del sys.modules[table]


def language(category: str) -> Any:
    """BFCL's name of the language that a category's calls are written in."""
    languages = _import("bfcl_eval.constants.enums").Language
    known = {"simple_java": languages.JAVA, "simple_javascript": languages.JAVASCRIPT}
    return known.get(category, languages.PYTHON)
