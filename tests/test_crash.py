"""A run that is killed at any instant and resumed ends with the same bytes as one that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import differing_files

ROOT = Path(__file__).resolve().parent.parent


def kill_runs(model: Path, folder: Path, num_kills: int, *further: str) -> dict[str, Any]:
    """The report of `killed_runs.py`."""
    command = [
        sys.executable,
        str(ROOT / "tests" / "killed_runs.py"),
        str(model),
        str(folder),
        str(num_kills),
        *further,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-4000:]
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


def killed_runs_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("killed/*/small"))


def test_three_kills_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    report = kill_runs(tiny_model, tmp_path, 3)
    assert report["differing"] == []
    assert len(killed_runs_of(tmp_path)) == report["runs"]


@pytest.mark.slow
def test_twenty_kills_of_the_installed_command_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    report = kill_runs(tiny_model, tmp_path, 20, "interpreter")
    assert report["differing"] == []
    starts = [json.loads((run / "environment.json").read_text()) for run in killed_runs_of(tmp_path)]
    resumed_at = {start["start_step"] for run_starts in starts for start in run_starts[1:]}
    assert len(resumed_at - {0}) > 1


def test_the_comparison_sees_a_single_byte(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"loss": 1.0}\n')
        (tmp_path / name / "summary.json").write_text(json.dumps({"steps": 3, "seconds": 1.0, "model": name}))
    assert differing_files(tmp_path / "one", tmp_path / "two") == []
    (tmp_path / "two" / "metrics.jsonl").write_text('{"loss": 1.5}\n')
    (tmp_path / "two" / "summary.json").write_text(json.dumps({"steps": 4, "seconds": 1.0, "model": "two"}))
    assert differing_files(tmp_path / "one", tmp_path / "two") == ["metrics.jsonl", "summary.json"]
