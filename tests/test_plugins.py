"""Names that become objects."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from firesteel.errors import ConfigError
from firesteel.plugins import load, nearest

TABLE = {"chain": 42, "tree": "math:pi"}


def test_nearest_hints_only_at_what_is_close() -> None:
    assert nearest("chian", TABLE) == " (did you mean 'chain'?)"
    assert nearest("zzz", TABLE) == "" == nearest("chain", [])


def test_names_of_the_table_and_paths() -> None:
    assert load("chain", TABLE, kind="part") == 42
    assert load("tree", TABLE, kind="part") == load("math:pi", TABLE, kind="part") == 3.141592653589793
    assert load("os.path:join", TABLE, kind="part")("a", "b") == str(Path("a") / "b")


@pytest.mark.parametrize("name", ["chians", "math", ":pi", "math:", ""])
def test_what_is_neither_is_named(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(name, TABLE, kind="part")
    hint = " (did you mean 'chain'?)" if name == "chians" else ""
    message = f"unknown part '{name}'{hint}; known: chain, tree; or give your own as 'package.module:object'"
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["no_such_module:x", "json.no_such_part:x", "no_such.part.deep:x"])
def test_a_missing_module_is_named(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"part '{name}': module '{name[:-2]}' cannot be imported; is it on PYTHONPATH"
    ):
        load(name, TABLE, kind="part")


def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(ConfigError, match="part 'math:tau2': module 'math' has no 'tau2'"):
        load("math:tau2", TABLE, kind="part")


@pytest.mark.parametrize("missing", ["absent_dependency", "own"])
def test_what_a_module_fails_to_import_is_told_as_it_is(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the missing name is the beginning of the module's own."""
    (tmp_path / "own_part.py").write_text(f"import {missing}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=missing) as caught:
        load("own_part:thing", TABLE, kind="part")
    assert caught.value.name == missing
    assert "own_part" not in sys.modules
