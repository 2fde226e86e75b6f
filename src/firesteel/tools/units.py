"""The tool `units`: conversions (pint)."""

from __future__ import annotations

import math
import re
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from firesteel.errors import ToolFailed
from firesteel.tools.base import MAX_OUTPUT_CHARACTERS, Tool

if TYPE_CHECKING:
    from pint import UnitRegistry

_QUERY = re.compile(
    r"(?:convert\s+)?(?P<value>[-+]?\d[\d_]*(?:\.\d+)?(?:e[-+]?\d{1,3})?)\s*(?P<source>[^\d].*?)\s+(?:to|in|into|as)\s+(?P<target>.+)",
    re.IGNORECASE,
)
# Names, brackets and small powers; no number that could make a unit enormous. No text fits in two ways, or a text that
# does not fit at all would be tried in all of them.
_UNIT = re.compile(
    r"(?!\d)(?:(?:\^|\*\*)\s*-?\d{1,2}(?!\d)|(?:\^|\*\*?)(?!\s*-?\d)(?!\*)|[A-Za-zµΩ°_/()\s]|(?<=[A-Za-z_])0)+"
)
_PER = re.compile(r"\s+per\s+")


class Units(Tool):
    """Converts a quantity from one unit to another."""

    name: ClassVar[str] = "units"
    description: ClassVar[str] = "Converts a quantity: '<number> <unit> to <unit>'; units may be products and powers"
    example: ClassVar[str] = "12.5 mile/hour to meter/second"
    example_output: ClassVar[str] = "12.5 mile per hour = 5.588 meter per second"
    max_query_characters: ClassVar[int] = 120

    def __init__(self, *, max_output_characters: int = MAX_OUTPUT_CHARACTERS) -> None:
        """The library is loaded with the first call (about half a second)."""
        super().__init__(max_output_characters=max_output_characters)
        # Reading a unit costs more than converting by it, and the same few come again and again.
        self._unit = lru_cache(maxsize=1024)(self._read_unit)

    def answer(self, query: str) -> str:
        match = _QUERY.fullmatch(query)
        if match is None:
            raise ToolFailed("wanted '<number> <unit> to <unit>', such as '5 mile to kilometer'")
        source, target = self._unit(match["source"]), self._unit(match["target"])
        value = float(match["value"].replace("_", ""))
        try:
            converted = self._registry.Quantity(value, source).to(target).magnitude
        except self._registry_errors as error:
            raise ToolFailed(str(error)) from error
        except OverflowError as error:
            raise ToolFailed("the result is too large") from error
        if not math.isfinite(converted):
            raise ToolFailed("the result is too large")
        return f"{value:.10g} {_spelt(source)} = {converted:.10g} {_spelt(target)}"

    def _read_unit(self, text: str) -> Any:
        text = _PER.sub(" / ", text.strip().rstrip("?."))
        if len(text) > 60 or _UNIT.fullmatch(text) is None:
            raise ToolFailed(f"'{text[:60]}' is not a unit")
        try:
            return self._registry.parse_units(text)
        except self._registry_errors as error:
            raise ToolFailed(str(error)) from error

    @cached_property
    def _registry(self) -> UnitRegistry:
        import pint

        return pint.UnitRegistry(cache_folder=None, autoconvert_offset_to_baseunit=True)

    @cached_property
    def _registry_errors(self) -> tuple[type[Exception], ...]:
        import pint

        return (pint.PintError, ValueError, TypeError, AttributeError, KeyError)


def _spelt(unit: Any) -> str:
    """The unit in words: "mile per hour" and not "mi/h", so that no output holds a bare capital letter."""
    return f"{unit:D}".replace(" / ", " per ").replace(" ** ", "^") or "dimensionless"
