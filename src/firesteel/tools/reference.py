"""The tool `reference`: physical constants (CODATA, scipy), chemical elements and molar masses (periodictable)."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, ClassVar

from firesteel.errors import ToolFailed
from firesteel.tools.base import Tool

MAX_FORMULA_ATOMS = 10_000

# Spelt out, so that no answer holds a bare capital letter, which an option of a question could be taken for.
_UNIT_NAMES = {
    "A": "ampere", "C": "coulomb", "F": "farad", "G": "gauss", "H": "henry", "Hz": "hertz", "J": "joule", "K": "kelvin",
    "N": "newton", "Pa": "pascal", "S": "siemens", "T": "tesla", "V": "volt", "W": "watt", "Wb": "weber",
    "kg": "kilogram", "m": "meter", "mol": "mole", "ohm": "ohm", "s": "second", "E_h": "hartree", "u": "dalton",
    "eV": "electronvolt",
    "GeV": "gigaelectronvolt", "MeV": "megaelectronvolt", "fm": "femtometer", "MHz": "megahertz",
}  # fmt: skip
_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d{0,3}|[()]\d{0,3})+")
_MASS = re.compile(r"(?:molar |molecular |formula )?(?:mass|weight) (?:of )?(.+)", re.IGNORECASE)
_ELEMENT = re.compile(r"(?:element )?([A-Za-z]{1,14}|\d{1,3})")


class Reference(Tool):
    """Looks up a physical constant, a chemical element, or the molar mass of a formula."""

    name: ClassVar[str] = "reference"
    description: ClassVar[str] = (
        "Looks up physical constants by name ('planck constant'), elements by name, symbol or number ('element iron'), "
        "and molar masses ('molar mass of C6H12O6')"
    )
    example: ClassVar[str] = "speed of light in vacuum"
    example_output: ClassVar[str] = "speed of light in vacuum: 299792458 meter second^-1"
    max_query_characters: ClassVar[int] = 120

    def answer(self, query: str) -> str:
        text = " ".join(query.split()).rstrip("?.")
        mass = _MASS.fullmatch(text)
        if mass is not None and _FORMULA.fullmatch(mass[1]):
            return f"{self._molar_mass(mass[1]):.6g} gram per mole"
        named = _ELEMENT.fullmatch(text)
        element = self._element(mass[1] if mass is not None else named[1] if named is not None else "")
        if element is not None:
            return f"{element.name}: atomic number {element.number}, atomic mass {element.mass:.6g} gram per mole"
        return self._constant(text)

    def _element(self, name: str) -> Any:
        return self._elements.get(name) or self._elements.get(name.lower())

    def _molar_mass(self, formula: str) -> float:
        try:
            parsed = self._table.formula(formula)
        except ValueError as error:
            raise ToolFailed(f"'{formula}' is not a chemical formula") from error
        if sum(parsed.atoms.values()) > MAX_FORMULA_ATOMS:
            raise ToolFailed(f"more than {MAX_FORMULA_ATOMS} atoms")
        return float(parsed.mass)

    def _constant(self, text: str) -> str:
        wanted = set(re.findall(r"[a-z0-9]+", text.lower())) - {"the", "of", "in", "value", "constant"}
        near = {name for word in wanted for name in self._names_with.get(word, ())}
        scored = [(_overlap(wanted, self._words[name]), -len(name), name) for name in near]
        best, _, name = max(scored, default=(0.0, 0, ""))
        if best < 0.5:
            raise ToolFailed("no such constant, element or formula")
        value, unit, _ = self._constants[name]
        return f"{name}: {value:.10g} {_spelt(unit)}".rstrip()

    @cached_property
    def _table(self) -> Any:
        import periodictable

        return periodictable

    @cached_property
    def _elements(self) -> dict[str, Any]:
        real = [element for element in self._table.elements if element.number > 0]
        named = {key: element for element in real for key in (element.name, element.symbol, str(element.number))}
        return named

    @cached_property
    def _constants(self) -> dict[str, tuple[float, str, float]]:
        from scipy.constants import physical_constants

        return {name: entry for name, entry in physical_constants.items() if "relationship" not in name}

    @cached_property
    def _words(self) -> dict[str, set[str]]:
        common = {"the", "of", "in", "constant"}
        return {name: set(re.findall(r"[a-z0-9]+", name.lower())) - common for name in self._constants}

    @cached_property
    def _names_with(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name, words in self._words.items():
            for word in words:
                index.setdefault(word, []).append(name)
        return index


def _overlap(wanted: set[str], words: set[str]) -> float:
    """Shared words as a share of all words of both, in [0, 1]."""
    return len(wanted & words) / len(wanted | words) if wanted else 0.0


def _spelt(unit: str) -> str:
    parts = [part.partition("^") for part in unit.split()]
    return " ".join(f"{_UNIT_NAMES.get(name, name)}{caret}{power}" for name, caret, power in parts)
