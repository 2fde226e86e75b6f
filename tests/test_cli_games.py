"""`firesteel games`: what is refused before anything is written. Writing games is a system test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firesteel.cli import app
from firesteel.environments.alfworld.generate import read_source
from firesteel.errors import ConfigError, MissingDependency


def test_mistakes_are_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "games"
    for arguments, message in (
        (["--split", "train,valid"], "no split 'valid'"),
        (["--count", "0"], "count must be at least 1"),
        (["--size", "huge"], "size must be 'full' or 'small'"),
    ):
        result = CliRunner().invoke(app, ["games", "alfworld", "--out", str(out), *arguments])
        assert isinstance(result.exception, ConfigError) and message in str(result.exception)
    read_source.cache_clear()
    monkeypatch.setitem(sys.modules, "alfworld", None)
    result = CliRunner().invoke(app, ["games", "alfworld", "--out", str(out)])
    assert isinstance(result.exception, MissingDependency) and "pip install --no-deps" in str(result.exception)
    assert not out.exists()
